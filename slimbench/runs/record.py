"""What a cell is, and the record that a run of it leaves.

A record is immutable and can be traced: what was asked for, with which code and data, on which machine,
and every number with the n it rests on. Files of a results folder OUT:

    OUT/records/<key>.json                   one per cell, written whole or not at all
    OUT/predictions/<key>.<task>.parquet     what the metrics of a task were computed from
    OUT/kept/<key>.npz                       which patches of each test slide were kept how far
    OUT/models/<training key>.safetensors    trained weights, shared by cells that differ in evaluation only
    OUT/logs/<key>.log                       what a cell printed, if it printed anything
    OUT/claims/, OUT/slurm/                  who is running which cell; submitted job arrays
    OUT/leaderboard.md, .html                written anew at the end of every sweep
"""

from __future__ import annotations

import hashlib
import json
import re
from datetime import datetime
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

SCHEMA_VERSION: Final = 1


class Strict(BaseModel):
    """Frozen, closed to fields that nobody declared, and to NaN: what is undefined is None with a note."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Cell(Strict):
    """One point of the grid; every field is written as on the command line.

    rate        pruning rate at evaluation, in [0, 1)
    trained_at  pruning rate at training; equal to `rate` unless one model is evaluated at many rates
    cohort      name, or path of a cohort file
    precision   "fp32" or "bf16"
    """

    encoder: str
    reducer: str
    rate: float
    trained_at: float
    seed: int
    cohort: str
    text: str
    recipe: str
    schedule: str = "geometric"
    precision: Literal["fp32", "bf16"] = "fp32"
    tasks: tuple[str, ...]


class Identity(Strict):
    """What the specs of a cell stand for: hashes of data and code that change its numbers.

    cohort    fingerprint of the cohort
    code      {"encoder": hash, "reducer": hash, "text": hash, "task:linear-probe": hash, ...}
    contents  {"text": "hf:model=3f0c9a...", ...}: for plugins that read weights or other files, their spec with
              hashes in place of the files' names (Registry.by_content)
    """

    cohort: str
    code: dict[str, str]
    contents: dict[str, str] = Field(default_factory=dict)

    def key(self, cell: Cell) -> str:
        """16 hex digits that name the cell's record.

        Device count and paths are left out: the same cohort or plugin file elsewhere is the same cell.
        """
        tasks = [self.contents.get(f"task:{spec}", spec) for spec in cell.tasks]
        asked = self._asked(cell) | {"tasks": sorted(map(_without_folder, tasks))}
        return _digest(asked | {"cohort": self.cohort, "code": _named(self.code)})

    def training_key(self, cell: Cell) -> str:
        """16 hex digits that name the trained weights: what is evaluated, and how, is left out."""
        asked = {key: value for key, value in self._asked(cell).items() if key not in ("tasks", "rate")}
        code = {part: value for part, value in self.code.items() if not part.startswith("task:")}
        return _digest(asked | {"cohort": self.cohort, "code": _named(code)})

    def _asked(self, cell: Cell) -> dict[str, Any]:
        """What was asked for, with the contents of files in place of their names."""
        asked = cell.model_dump(exclude={"cohort"})
        asked |= {part: spec for part, spec in self.contents.items() if part in asked}
        return {
            key: _without_folder(value) if isinstance(value, str) else value for key, value in asked.items()
        }


class MetricValue(Strict):
    """slimbench.Metric, as it is written down."""

    name: str
    value: float | None
    n: int
    low: float | None = None
    high: float | None = None
    note: str | None = None


class TaskOutcome(Strict):
    """One task of a cell.

    primary  Task.primary: the metric that a table shows and tests when nobody asks for another
    skipped  why it could not run on this encoder or cohort, else None
    """

    metrics: tuple[MetricValue, ...] = ()
    primary: str | None = None
    facts: dict[str, Any] = Field(default_factory=dict)
    predictions: str | None = None
    seconds: float = 0.0
    skipped: str | None = None


class Training(Strict):
    """How the encoder was trained; losses are means over the first and the last epoch.

    source  slimbench.runs.provenance.source_hash() of the training; other code trains anew
    reused  whether the weights were there already
    """

    epochs: int
    steps: int
    parameters: int
    first_loss: float
    last_loss: float
    seconds: float
    source: str | None = None
    reused: bool = False


class Kept(Strict):
    """What was really kept on the test split, as shares of a slide's patches. With last-layer fusion all patches
    enter the last block, and what is kept is what was left before they came back.

    tokens_per_block   mean number of patch tokens that entered each block
    share              mean over slides of tokens that the reducers left / patches
    single_token       share of slides of which they left one token
    """

    tokens_per_block: tuple[float, ...]
    share: float
    single_token: float
    n: int


class Failure(Strict):
    """Why a cell failed. kind: what a person does about it differs."""

    kind: Literal["error", "oom", "timeout", "killed"]
    type: str
    message: str
    traceback: str = ""


class Record(Strict):
    """One run of one cell.

    cohort_name, captions  Cohort.name and Cohort.captions
    provenance             slimbench.runs.provenance.collect()
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    key: str
    cell: Cell
    identity: Identity
    cohort_name: str
    captions: str | None = None
    status: Literal["ok", "failed"]
    failure: Failure | None = None
    training: Training | None = None
    kept: Kept | None = None
    tasks: dict[str, TaskOutcome] = Field(default_factory=dict)
    provenance: dict[str, Any] = Field(default_factory=dict)
    started: datetime
    ended: datetime
    seconds: float


def _without_folder(spec: str) -> str:
    """`a/b/mine.py:Mine` -> `mine.py:Mine`, also inside a wrapper's brackets."""
    return re.sub(r"[^()=,:]*/(?=[^/():]+\.py:)", "", spec)


def _named(code: dict[str, str]) -> dict[str, str]:
    return {_without_folder(part): value for part, value in code.items()}


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
