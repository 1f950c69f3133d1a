"""The leaderboard: comparison tables from records, and what has to be said beside every row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from slimbench.errors import UsageError
from slimbench.leaderboard.rows import Row, mean_pool, metrics_of, rows, tasks_of, unpruned
from slimbench.leaderboard.table import EMPTY, Cell, Column, Table, count, interval, number, percent, words
from slimbench.runs.record import Record

EFFICIENCY, FLOPS = "efficiency", "flops"
PROBED = "balanced_accuracy"  # a task with this metric can be read against mean-pool

MARKS = {
    "below mean-pool": "its balanced accuracy is below that of the plain mean of all patches",
    "label-supervised": "the captions it was trained on contain the labels it is probed for",
    "1 seed: no verdict": "differences of one training run are not told from chance",
}


@dataclass(frozen=True)
class _Field:
    """A column and what stands in it for a row."""

    column: Column
    of: Callable[[Row], Cell]


def leaderboard(records: Iterable[Record], tasks: Sequence[str] = ()) -> tuple[Table, ...]:
    """Comparison tables of all records, one per cohort and kind of row, then the failed cells.

    tasks  show every metric of these; by default the primary one of every task

    Rows whose encoder was trained at their own rate and rows of one model that was evaluated at other
    rates than its own stand in different tables. Raises UsageError for a task that nobody ran.
    """
    records = list(records)
    every = rows(records)
    known = tasks_of(every)
    for task in tasks:
        if task not in known:
            raise UsageError(f"no record has the task {task!r}; they have {', '.join(known) or 'none'}")
    tables = []
    for cohort in dict.fromkeys(row.setting.cohort for row in every):
        of_cohort = [row for row in every if row.setting.cohort == cohort]
        own = [row for row in of_cohort if not row.setting.one_model]
        moved = [row for row in of_cohort if row.setting.one_model]
        tables.append(_table(f"{cohort}: trained at each rate", own, of_cohort, tasks))
        if moved:
            fixed = [row for row in own if row.setting.is_baseline or row.setting.is_unpruned]
            title = f"{cohort}: one model, evaluated at other rates than it was trained at"
            tables.append(_table(title, [*fixed, *moved], of_cohort, tasks))
    failed = [record for row in every for record in row.failed]
    return (*tables, *([_failures(failed)] if failed else []))


def marks(row: Row, others: Sequence[Row]) -> tuple[str, ...]:
    """Keys of MARKS that hold for a row."""
    found = []
    baseline = mean_pool(row, others)
    if baseline is not None and not row.setting.is_baseline and _below(row, baseline):
        found.append("below mean-pool")
    if row.label_supervised:
        found.append("label-supervised")
    if row.seeds == 1 and not row.setting.is_baseline:
        found.append("1 seed: no verdict")
    return tuple(found)


def _below(row: Row, baseline: Row) -> bool:
    for task in tasks_of([row]):
        ours, theirs = row.value(task, PROBED), baseline.value(task, PROBED)
        if ours and theirs and ours.mean is not None and theirs.mean is not None and ours.mean < theirs.mean:
            return True
    return False


def _table(title: str, shown: Sequence[Row], others: Sequence[Row], tasks: Sequence[str]) -> Table:
    fields = [
        *_identity(shown),
        *_results(shown, others, tasks),
        _Field(Column("marks", number=False), _said(others)),
    ]
    used = dict.fromkeys(mark for row in shown for mark in marks(row, others))
    legend = [f"{mark}: {MARKS[mark]}" for mark in used]
    spans = "± seeds: standard deviation over seeds; 95 % slides: interval over test slides, mean over seeds"
    return Table(
        title,
        tuple(field.column for field in fields),
        tuple(tuple(field.of(row) for field in fields) for row in shown),
        (*([spans] if shown else []), *legend),
    )


def _identity(shown: Sequence[Row]) -> list[_Field]:
    """What tells the rows apart; what all of them share is left out."""
    fields = [
        _Field(Column("encoder", number=False), lambda row: words(row.setting.encoder)),
        _Field(Column("reducer", number=False), lambda row: words(row.setting.reducer)),
    ]
    for name in ("schedule", "text", "recipe", "precision"):
        if len({getattr(row.setting, name) for row in shown if not row.setting.is_baseline}) > 1:

            def own(row: Row, name: str = name) -> Cell:
                return EMPTY if row.setting.is_baseline else words(getattr(row.setting, name))

            fields.append(_Field(Column(name, number=False), own))
    if any(row.setting.one_model for row in shown):
        fields.append(
            _Field(
                Column("trained at"), lambda row: Cell(f"{row.setting.trained_at:g}", row.setting.trained_at)
            )
        )
    return [
        *fields,
        _Field(Column("rate"), lambda row: Cell(f"{row.setting.rate:g}", row.setting.rate)),
        _Field(Column("kept", rank=1), lambda row: percent(row.kept)),
        _Field(Column("seeds"), lambda row: count(row.seeds)),
    ]


def _results(shown: Sequence[Row], others: Sequence[Row], tasks: Sequence[str]) -> list[_Field]:
    fields = []
    known = tasks_of(shown)
    for place, (task, primary) in enumerate(known.items()):
        if tasks and task not in tasks:
            continue
        if task.split(":")[0] == EFFICIENCY and not tasks:
            fields += _costs(task, others)
            continue
        for metric in metrics_of(shown, task) if tasks else (primary,):
            fields += _measured(task, metric, rank=2 * bool(place or tasks))
    return fields


def _measured(task: str, metric: str, rank: int) -> list[_Field]:
    """Value, spread over seeds, interval over slides and n of one metric."""

    def cell(show: Callable[..., Cell]) -> Callable[[Row], Cell]:
        def of(row: Row) -> Cell:
            value = row.value(task, metric)
            if value is None:
                return Cell("skipped") if row.skipped(task) and show is _mean else EMPTY
            return show(value)

        return of

    title = metric.replace("_", " ")
    return [
        _Field(Column(title, task), cell(_mean)),
        _Field(Column("± seeds", task, rank=1 + rank), cell(lambda value: number(value.spread))),
        _Field(
            Column("95 % slides", task, rank=2 + rank), cell(lambda value: interval(value.low, value.high))
        ),
        _Field(Column("n", task, rank=3 + rank), cell(lambda value: count(value.n))),
    ]


def _mean(value: object) -> Cell:
    mean = getattr(value, "mean", None)
    return Cell("undefined") if mean is None else number(mean)


def _costs(task: str, others: Sequence[Row]) -> list[_Field]:
    """FLOPs, their share of the unpruned encoder's, latency and memory of one slide."""

    def metric(name: str) -> Callable[[Row], Cell]:
        def of(row: Row) -> Cell:
            value = row.value(task, name)
            return EMPTY if value is None else number(value.mean, 1)

        return of

    def relative(row: Row) -> Cell:
        whole = unpruned(row, others)
        own, full = (r and r.value(task, FLOPS) for r in (row, whole))
        if not own or not full or own.mean is None or not full.mean:
            return EMPTY
        return percent(own.mean / full.mean)

    return [
        _Field(Column("FLOPs", task), metric(FLOPS)),
        _Field(Column("of unpruned", task, rank=2), relative),
        _Field(Column("ms", task, rank=2), metric("latency_median_ms")),
        _Field(Column("MiB", task, rank=4), metric("peak_memory_mib")),
    ]


def _said(others: Sequence[Row]) -> Callable[[Row], Cell]:
    def of(row: Row) -> Cell:
        said = list(marks(row, others))
        if row.failed:
            kinds = ", ".join(sorted({r.failure.kind for r in row.failed if r.failure is not None}))
            said.insert(0, f"failed: {len(row.failed)} of {len(row.failed) + row.seeds} ({kinds})")
        return words("; ".join(said))

    return of


def _failures(failed: Sequence[Record]) -> Table:
    columns = ("cohort", "encoder", "reducer", "rate", "seed", "kind", "why", "cell")
    lines = []
    for record in failed:
        cell, failure = record.cell, record.failure
        assert failure is not None
        lines.append(
            (
                words(record.cohort_name),
                words(cell.encoder),
                words(cell.reducer),
                Cell(f"{cell.rate:g}", cell.rate),
                count(cell.seed),
                words(failure.kind),
                words(f"{failure.type}: {failure.message}"),
                words(record.key),
            )
        )
    numbers = ("rate", "seed")
    return Table(
        "Failed cells (slimbench sweep ... --rerun failed runs them again)",
        tuple(Column(name, number=name in numbers) for name in columns),
        tuple(lines),
    )
