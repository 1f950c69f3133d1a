"""What a cell is, and the record that a run of it leaves.

A record is immutable and can be traced: what was asked for, with which code and data, on which machine,
and every number with the n it rests on. Files of a results folder OUT:

    OUT/records/<key>.json                   one per cell, written whole or not at all
    OUT/predictions/<key>.<task>.parquet     what the metrics of a task were computed from
    OUT/models/<training key>.safetensors    trained weights, shared by cells that differ in evaluation only
"""

from __future__ import annotations

import hashlib
import json
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

SCHEMA_VERSION = 1


class Strict(BaseModel):
    """Frozen, and closed to fields that nobody declared."""

    model_config = ConfigDict(frozen=True, extra="forbid")


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

    cohort  fingerprint of the cohort
    code    {"encoder": hash, "reducer": hash, "text": hash, "task:linear-probe": hash, ...}
    """

    cohort: str
    code: dict[str, str]

    def key(self, cell: Cell) -> str:
        """16 hex digits that name the cell's record. Device count and paths are left out."""
        asked = cell.model_dump(exclude={"cohort"}) | {"tasks": sorted(cell.tasks)}
        return _digest(asked | {"cohort": self.cohort, "code": self.code})

    def training_key(self, cell: Cell) -> str:
        """16 hex digits that name the trained weights: what is evaluated, and how, is left out."""
        asked = cell.model_dump(exclude={"cohort", "tasks", "rate"})
        code = {part: value for part, value in self.code.items() if not part.startswith("task:")}
        return _digest(asked | {"cohort": self.cohort, "code": code})


class MetricValue(Strict):
    """slimbench.task.Metric, as it is written down."""

    name: str
    value: float | None
    n: int
    low: float | None = None
    high: float | None = None
    note: str | None = None


class TaskOutcome(Strict):
    """One task of a cell. skipped: why it could not run on this encoder or cohort, else None."""

    metrics: tuple[MetricValue, ...] = ()
    facts: dict[str, Any] = Field(default_factory=dict)
    predictions: str | None = None
    seconds: float = 0.0
    skipped: str | None = None


class Training(Strict):
    """How the encoder was trained; losses are means over the first and the last epoch."""

    epochs: int
    steps: int
    parameters: int
    first_loss: float
    last_loss: float
    seconds: float
    reused: bool = False


class Kept(Strict):
    """What was really kept on the test split, as shares of a slide's patches.

    tokens_per_block   mean number of patch tokens that entered each block
    share              mean over slides of tokens before the last block / patches
    single_token       share of slides that ended with one token
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
    """One run of one cell."""

    schema_version: Literal[1] = SCHEMA_VERSION
    key: str
    cell: Cell
    identity: Identity
    cohort_name: str
    status: Literal["ok", "failed"]
    failure: Failure | None = None
    training: Training | None = None
    kept: Kept | None = None
    tasks: dict[str, TaskOutcome] = Field(default_factory=dict)
    provenance: dict[str, Any] = Field(default_factory=dict)
    started: datetime
    ended: datetime
    seconds: float


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
