"""Numbers again, from what was stored: metrics and intervals from predictions, without a model.

And what numbers say about themselves (slimbench.statistics.lint), ours and the published ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from slimbench.leaderboard.compare import Reader
from slimbench.leaderboard.published import Source
from slimbench.leaderboard.table import Cell, Column, Table, interval, number, words
from slimbench.runs.record import Record, TaskOutcome
from slimbench.statistics.estimates import Metric, estimate
from slimbench.statistics.intervals import Method
from slimbench.statistics.lint import Finding, Row, lint
from slimbench.statistics.means import mean_estimate, median_rank_estimate, share_estimate
from slimbench.statistics.retrieval import query_values

SAME = 1e-9  # what rounding in another linear algebra library may change


@dataclass(frozen=True)
class Scored:
    """One metric of a record, as it stands there and as it comes out of the stored predictions."""

    record: Record
    task: str
    stands: float | None
    found: Metric

    @property
    def differs(self) -> bool:
        """Whether the record claims another value than its own predictions give."""
        if self.stands is None or self.found.value is None:
            return self.stands is not self.found.value
        return abs(self.stands - self.found.value) > SAME


def score(records: Iterable[Record], read: Reader, method: Method = "standard") -> Iterator[Scored]:
    """Every metric of the records that can be computed from their predictions: classification and retrieval.

    read    reads predictions; OSError passes on, because a record without its predictions proves nothing
    method  of the intervals of classification metrics
    """
    for record in records:
        for task, outcome in record.tasks.items():
            if outcome.predictions is None:
                continue
            stands = {metric.name: metric.value for metric in outcome.metrics}
            for found in _estimates(read(outcome.predictions), outcome, method):
                if found.name in stands:
                    yield Scored(record, task, stands[found.name], found)


def table(scored: Sequence[Scored]) -> Table:
    """What `slimbench score` prints."""
    names = (
        "encoder",
        "reducer",
        "rate",
        "seed",
        "task",
        "metric",
        "value",
        "95 % slides",
        "n",
        "record",
        "cell",
    )
    numbers = ("rate", "seed", "value", "95 % slides", "n")
    columns = tuple(Column(name, number=name in numbers, ends=name == "95 % slides") for name in names)
    lines = []
    for each in scored:
        cell, found = each.record.cell, each.found
        lines.append(
            (
                words(cell.encoder),
                words(cell.reducer),
                Cell(f"{cell.rate:g}", cell.rate),
                Cell(str(cell.seed), cell.seed),
                words(each.task),
                words(found.name),
                number(found.value),
                interval(found.low, found.high),
                Cell(str(found.n), found.n),
                words("differs" if each.differs else "same"),
                words(each.record.key),
            )
        )
    return Table("Recomputed from stored predictions", columns, tuple(lines))


def doubts(records: Sequence[Record], published: Iterable[Source]) -> list[Finding]:
    """What the numbers of the records, and of each published table, give away about themselves."""
    found = []
    for record in records:
        for task, outcome in record.tasks.items():
            metrics = {m.name: m.value for m in outcome.metrics if m.value is not None}
            n = next((m.n for m in outcome.metrics if m.name == "accuracy"), None)
            where = f"{record.cohort_name} {record.cell.encoder} {record.cell.reducer} {record.cell.rate:g} {task}"
            whole = n if "intervals" in outcome.facts else None  # else a mean over draws
            found += [each for each in lint([Row(where, metrics, whole)], digits=12) if each.kind == "error"]
    for source in published:
        for cohort in dict.fromkeys(row.cohort for row in source.rows):
            rows = [
                Row(f"{source.source}, table {row.table}, {cohort}: {row.row}", row.metrics)
                for row in source.rows
                if row.cohort == cohort
            ]
            found += lint(rows)
    return found


def _estimates(predictions: pd.DataFrame, outcome: TaskOutcome, method: Method) -> Iterator[Metric]:
    if "log_probabilities" in predictions and "draw" not in predictions and "classes" in outcome.facts:
        classes = list(outcome.facts["classes"])
        index = {name: place for place, name in enumerate(classes)}
        truth = np.array([index[label] for label in predictions["label"]], dtype=np.int64)
        log_p = np.stack(list(predictions["log_probabilities"]))
        patients = predictions["patient"].tolist()
        yield from estimate(truth, log_p, patients, classes, method=method).metrics
    if {"direction", "better", "tied", "gallery"} <= set(predictions):
        for metric in outcome.metrics:
            direction, _, name = metric.name.partition("_")
            queries = predictions[predictions["direction"] == direction]
            patients = queries["patient"].tolist()
            if name == "median_rank":
                yield median_rank_estimate(metric.name, queries["rank"].to_numpy(), patients)
            elif name == "mean_rank":
                ranks = query_values(queries, name)
                yield mean_estimate(metric.name, ranks, patients, 1, int(queries["gallery"].max()))
            elif len(queries):
                yield share_estimate(metric.name, query_values(queries, name), patients, metric.note)
