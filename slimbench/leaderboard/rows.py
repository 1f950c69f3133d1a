"""Rows of a leaderboard, from records alone: one per setting, its seeds averaged."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from slimbench.runs.record import MetricValue, Record

MEAN_POOL, NONE = "mean-pool", "none"
TRAINING = ("data", "text", "recipe", "precision")
RANDOM = "random"


@dataclass(frozen=True, order=True)
class Setting:
    """All of a cell but its seed and tasks.

    data       fingerprint of the cohort: results on other data under the same name are other rows
    one_model  whether one model, trained at `trained_at`, was evaluated at this rate; else it was trained at it
    """

    cohort: str
    data: str
    encoder: str
    reducer: str
    schedule: str
    text: str
    recipe: str
    precision: str
    one_model: bool
    trained_at: float
    rate: float

    @classmethod
    def of(cls, record: Record) -> Setting:
        cell = record.cell
        return cls(
            record.cohort_name,
            record.identity.cohort,
            cell.encoder,
            cell.reducer,
            cell.schedule,
            cell.text,
            cell.recipe,
            cell.precision,
            cell.trained_at != cell.rate,
            cell.trained_at,
            cell.rate,
        )

    @property
    def is_baseline(self) -> bool:
        """Whether nothing is reduced and nothing trained: the mean of all patches."""
        return self.encoder == MEAN_POOL and self.reducer == NONE

    @property
    def is_unpruned(self) -> bool:
        """Whether an encoder with blocks sees every token."""
        return self.encoder != MEAN_POOL and self.reducer == NONE


@dataclass(frozen=True)
class Value:
    """One metric of a row.

    mean       over the seeds at which it is defined; None if it is nowhere
    spread     standard deviation over seeds, None for fewer than two
    low, high  95 % interval over slides, mean of the seeds' own
    n          slides (queries, ...) that each seed's value rests on
    """

    mean: float | None
    spread: float | None
    low: float | None
    high: float | None
    n: int
    seeds: int


@dataclass(frozen=True)
class Row:
    """The records of one setting, by seed."""

    setting: Setting
    ok: tuple[Record, ...]
    failed: tuple[Record, ...]

    @property
    def seeds(self) -> int:
        return len(self.ok)

    @cached_property
    def facts(self) -> Mapping[str, Any]:
        """What the last seed's record says of its encoder: the card of slide features, how much they differ, ..."""
        facts: dict[str, Any] = self.ok[-1].provenance.get("encoder", {}) if self.ok else {}
        return facts

    @property
    def card(self) -> Mapping[str, str] | None:
        """What slide features say of themselves; None without a card, and for encoders that run here."""
        card: dict[str, str] | None = self.facts.get("card")
        return card

    @property
    def encoder(self) -> str:
        """As tables name it: by its card, else as it was asked for."""
        return self.setting.encoder if self.card is None else self.card["encoder"]

    @cached_property
    def kept(self) -> float | None:
        """Share of a test slide's patches before the last block, mean over slides and seeds."""
        return _mean([record.kept.share for record in self.ok if record.kept is not None])

    def value(self, task: str, metric: str) -> Value | None:
        """A metric over the seeds, None where no seed has the task."""
        found = [m for record in self.ok if (m := _metric(record, task, metric)) is not None]
        if not found:
            return None
        values = [m.value for m in found if m.value is not None]
        ends = [(m.low, m.high) for m in found if m.low is not None and m.high is not None]
        return Value(
            _mean(values),
            statistics.stdev(values) if len(values) > 1 else None,
            _mean([low for low, _ in ends]),
            _mean([high for _, high in ends]),
            min(m.n for m in found),
            len(values),
        )

    def skipped(self, task: str) -> str | None:
        """Why a task could not run on this row, None if it did or was not asked for."""
        reasons = {r.tasks[task].skipped for r in self.ok if task in r.tasks} - {None}
        return min(filter(None, reasons), default=None)

    @cached_property
    def mixed(self) -> bool:
        """Whether its seeds ran different code, of slimbench or of a plugin."""
        return len({(str(r.provenance.get("source")), *sorted(r.identity.code.items())) for r in self.ok}) > 1

    @cached_property
    def label_supervised(self) -> bool:
        """Whether the encoder was trained on captions that hold the labels it is probed for."""
        return any(outcome.facts.get("label_supervised") for r in self.ok for outcome in r.tasks.values())


def rows(records: Iterable[Record]) -> tuple[Row, ...]:
    """Group records by setting; of each cohort first mean-pool, then the unpruned rows, then by reducer and rate."""
    groups: dict[Setting, dict[int, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in sorted(records, key=lambda record: record.ended):
        groups[Setting.of(record)][record.cell.seed].append(record)
    made = []
    for setting, seeds in groups.items():
        ok = {seed: merged for seed in sorted(seeds) if (merged := _merged(seeds[seed])) is not None}
        failed = [seeds[seed][-1] for seed in sorted(seeds) if seed not in ok]
        made.append(Row(setting, tuple(ok.values()), tuple(failed)))
    return tuple(sorted(made, key=lambda row: _order(row.setting)))


def _merged(records: Sequence[Record]) -> Record | None:
    """The last finished record of a seed, with the tasks that earlier ones measured on the same training."""
    finished = [record for record in records if record.status == "ok"]
    if not finished:
        return None
    last = finished[-1]
    training = last.identity.training_key(last.cell)
    same = [record for record in finished if record.identity.training_key(record.cell) == training]
    tasks = {task: outcome for record in same for task, outcome in record.tasks.items()}
    return last.model_copy(update={"tasks": tasks})


def tasks_of(rows: Sequence[Row]) -> dict[str, str]:
    """{task: primary metric} over all rows, in the order in which the cells named them."""
    found: dict[str, str] = {}
    for row in rows:
        for record in row.ok:
            for task in (*record.cell.tasks, *record.tasks):
                outcome = record.tasks.get(task)
                if outcome is not None and outcome.metrics and task not in found:
                    found[task] = outcome.primary or outcome.metrics[0].name
    order = {task: place for row in rows for r in row.ok for place, task in enumerate(r.cell.tasks)}
    return dict(sorted(found.items(), key=lambda item: order.get(item[0], len(order))))


def metrics_of(rows: Sequence[Row], task: str) -> tuple[str, ...]:
    """Names of all metrics of a task, in the task's order."""
    names = [m.name for row in rows for r in row.ok if task in r.tasks for m in r.tasks[task].metrics]
    return tuple(dict.fromkeys(names))


def unpruned(row: Row, others: Sequence[Row]) -> Row | None:
    """The row without a reducer that `row` is read against: same cohort, encoder and training."""
    return next(
        (o for o in others if o.setting.reducer == NONE and _alike(o, row, "encoder", *TRAINING)), None
    )


def random(row: Row, others: Sequence[Row]) -> Row | None:
    """The random reducer that `row` is read against: all the same but the reducer."""
    same = ("encoder", *TRAINING, "schedule", "one_model", "trained_at", "rate")
    return next((o for o in others if o.setting.reducer == RANDOM and _alike(o, row, *same)), None)


def mean_pool(row: Row, others: Sequence[Row]) -> Row | None:
    """The mean of all patches that `row` is read against: same cohort and, if there is one, same training."""
    found = [o for o in others if o.setting.is_baseline and _alike(o, row, "data")]
    return next((o for o in found if _alike(o, row, *TRAINING)), found[0] if found else None)


def _alike(one: Row, other: Row, *names: str) -> bool:
    return all(getattr(one.setting, name) == getattr(other.setting, name) for name in names)


def _metric(record: Record, task: str, metric: str) -> MetricValue | None:
    outcome = record.tasks.get(task)
    return next((m for m in outcome.metrics if m.name == metric), None) if outcome is not None else None


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _order(setting: Setting) -> tuple[object, ...]:
    kind = 0 if setting.is_baseline else 1 if setting.is_unpruned else 2
    return (setting.cohort, kind, *vars(setting).values())
