"""Two cells beside each other: first what differs in how they came about, then their numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from slimbench.errors import UsageError
from slimbench.leaderboard.compare import Reader
from slimbench.leaderboard.table import EMPTY, Cell, Column, Table, interval, number, signed, words
from slimbench.runs.record import Record
from slimbench.statistics.paired import PairedComparison, compare, compare_queries

ONE_RUN = "p is over slides alone; each side is one training run, so it is no verdict on the method"


def explain(one: Record, other: Record, read: Reader) -> tuple[Table, Table]:
    """(what differs, the numbers): cell, data, code, versions, machine, threads; then every metric."""
    return _differences(one, other), _numbers(one, other, read)


def _differences(one: Record, other: Record) -> Table:
    ours, theirs = (dict(_flat(_origin(record))) for record in (one, other))
    names = [name for name in dict.fromkeys([*ours, *theirs]) if ours.get(name) != theirs.get(name)]
    rows = tuple((words(name), words(ours.get(name, "")), words(theirs.get(name, ""))) for name in names)
    columns = tuple(Column(title, number=False) for title in ("what differs", one.key, other.key))
    notes = () if rows else ("nothing differs: the same cell, code, data and machine",)
    return Table("How they came about", columns, rows, notes)


def _origin(record: Record) -> dict[str, Any]:
    said = record.model_dump(include={"cell", "identity", "cohort_name", "status", "training"}, mode="json")
    return said | {"provenance": record.provenance}


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """(path, text) of every leaf: `provenance machine cores`, `8`."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{path} {key}".strip())
    else:
        yield path, ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _numbers(one: Record, other: Record, read: Reader) -> Table:
    columns = (
        Column("task", number=False),
        Column("metric", number=False),
        Column(one.key),
        Column(other.key),
        Column("Δ"),
        Column("95 % Δ", ends=True),
        Column("p"),
        Column("n"),
    )
    rows = []
    for task, outcome in one.tasks.items():
        theirs = {m.name: m for m in other.tasks[task].metrics} if task in other.tasks else {}
        for metric in outcome.metrics:
            if metric.name not in theirs:
                continue
            against = theirs[metric.name]
            gap = None if metric.value is None or against.value is None else metric.value - against.value
            paired = _paired(one, other, task, metric.name, read)
            p = paired.p if paired is not None else None
            rows.append(
                (
                    words(task),
                    words(metric.name),
                    number(metric.value),
                    number(against.value),
                    signed(gap),
                    EMPTY if paired is None else interval(paired.low, paired.high),
                    EMPTY if p is None else Cell(f"{p:.2g}", p),
                    Cell(str(metric.n), metric.n),
                )
            )
    return Table(f"{one.key} minus {other.key}", columns, tuple(rows), (ONE_RUN,))


def _paired(one: Record, other: Record, task: str, metric: str, read: Reader) -> PairedComparison | None:
    """The paired comparison where both left predictions on the same slides."""
    outcomes = (one.tasks[task], other.tasks[task])
    paths = [outcome.predictions for outcome in outcomes]
    classes = [outcome.facts.get("classes") for outcome in outcomes]
    if paths[0] is None or paths[1] is None or classes[0] != classes[1]:
        return None
    try:
        tables = read(paths[0]), read(paths[1])
        if "direction" in tables[0]:
            return compare_queries(*tables, metric)
        if classes[0] is not None and "log_probabilities" in tables[0]:
            return compare(*tables, list(classes[0]), metric)
    except (OSError, UsageError):
        return None
    return None
