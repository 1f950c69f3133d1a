"""One run of one cell: open the cohort, train, encode, measure.

This file is the edge between the grid and the machinery; an executor calls `run_cell` in a process of
its own and writes the record it returns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from slimbench.runs.record import Cell, Identity, Record


@dataclass(frozen=True)
class Progress:
    """How far a cell is: phase "train", "encode" or a task's name; done of total; a line such as `loss 0.61`."""

    phase: str
    done: int
    total: int
    line: str = ""


def identify(cell: Cell) -> Identity:
    """Hashes of the data and the code that `cell` names; imports no torch."""
    raise NotImplementedError


def run_cell(cell: Cell, out: Path, report: Callable[[Progress], None]) -> Record:
    """Train (or reuse the trained weights of) the cell's encoder, run its tasks, write predictions.

    Returns the record of a finished cell; whatever goes wrong is raised, for the executor to record.
    """
    raise NotImplementedError
