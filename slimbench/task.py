"""What a task is: it takes what a trained encoder made of a cohort and hands back metrics.

A task's author writes `run(evidence) -> TaskResult`; see tasks/linear_probe.py for one of 60 lines.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from slimbench.cohorts.cohort import Cohort, Slide
from slimbench.encoder import Plan, SlideEncoder, SlideInput
from slimbench.statistics.estimates import Metric
from slimbench.trace import Trace


@dataclass(frozen=True)
class Embeddings:
    """Embeddings of the slides of one split, row i belongs to slides[i].

    embedding  [n, D] float32: what a probe sees
    aligned    [n, P] float32, L2-normalised in the space shared with text; None without alignment
    counts     per slide the tokens that entered each block
    left       per slide Trace.left: [P] uint8; None where the encoder traces nothing
    """

    slides: tuple[Slide, ...]
    embedding: NDArray[np.float32]
    aligned: NDArray[np.float32] | None
    counts: tuple[tuple[int, ...], ...]
    left: tuple[NDArray[np.uint8], ...] | None = None


class Evidence(Protocol):
    """What a task may ask for; each is computed once per cell, at the first question.

    cohort, seed, rate, precision      of the cell
    logit_scale             learned temperature of the alignment; None without alignment
    """

    cohort: Cohort
    seed: int
    rate: float
    precision: str

    @property
    def logit_scale(self) -> float | None: ...

    def embeddings(self, split: str) -> Embeddings:
        """Embeddings of "train", "val" or "test"."""
        ...

    def texts(self, texts: Sequence[str]) -> NDArray[np.float32] | None:
        """[len(texts), P] L2-normalised in the shared space; None without alignment."""
        ...

    def traces(self, split: str) -> Mapping[str, Trace]:
        """Where the patches of each slide went, by slide id."""
        ...

    def slide(self, slide_id: str) -> SlideInput:
        """One slide as the encoder takes it."""
        ...

    @property
    def encoder(self) -> SlideEncoder:
        """The trained SlideEncoder, in eval mode, with its reducers in place."""
        ...

    @property
    def plan(self) -> Plan:
        """The Plan of the cell's evaluation."""
        ...


@dataclass(frozen=True)
class TaskResult:
    """metrics, the predictions they were computed from (one row per slide), and the protocol's facts."""

    metrics: tuple[Metric, ...]
    predictions: pd.DataFrame | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


class Task(ABC):
    """A measurement on a trained encoder; built with keyword arguments from its spec.

    needs_alignment  True if it cannot run on an encoder without text alignment: it is skipped, saying so
    needs_patches    True if it cannot run on an encoder that reads no patches: it is skipped, saying so
    primary          the metric that a leaderboard sorts and tests by
    """

    needs_alignment: ClassVar[bool] = False
    needs_patches: ClassVar[bool] = False
    primary: str

    def check(self, cohort: Cohort) -> None:  # noqa: B027  (many tasks can do with any cohort)
        """Raise SlimbenchError if the cohort's tables say already that it cannot support the task; a sweep asks
        before anything is trained."""

    @abstractmethod
    def run(self, evidence: Evidence) -> TaskResult:
        """Measure. Raises SlimbenchError when the cohort cannot support the task."""
