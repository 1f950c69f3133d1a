"""The columns of a leaderboard: what stands in each of them for a row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from slimbench.leaderboard.rows import Row, Value, unpruned
from slimbench.leaderboard.table import EMPTY, Cell, Column, count, interval, number, percent, signed, words

if TYPE_CHECKING:
    from slimbench.leaderboard.compare import Difference

FLOPS = "flops"


@dataclass(frozen=True)
class Field:
    """A column and its cell of a row."""

    column: Column
    of: Callable[[Row], Cell]


def identity(shown: Sequence[Row]) -> list[Field]:
    """What tells the rows apart; what all of them share is left out."""
    fields = [
        Field(Column("encoder", number=False), lambda row: words(row.encoder)),
        Field(Column("reducer", number=False), lambda row: words(row.setting.reducer)),
    ]
    for name in ("schedule", "text", "recipe", "precision"):
        if len({getattr(row.setting, name) for row in shown if not row.setting.is_baseline}) > 1:

            def own(row: Row, name: str = name) -> Cell:
                return EMPTY if row.setting.is_baseline else words(getattr(row.setting, name))

            fields.append(Field(Column(name, number=False), own))
    if any(row.setting.one_model for row in shown):
        fields.append(
            Field(
                Column("trained at"), lambda row: Cell(f"{row.setting.trained_at:g}", row.setting.trained_at)
            )
        )
    return [
        *fields,
        Field(Column("rate"), lambda row: Cell(f"{row.setting.rate:g}", row.setting.rate)),
        Field(Column("kept", rank=1), lambda row: percent(row.kept)),
        Field(Column("seeds"), lambda row: count(row.seeds)),
    ]


def measured(task: str, metric: str, rank: int) -> list[Field]:
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
        Field(Column(title, task), cell(_mean)),
        Field(Column("± seeds", task, rank=1 + rank), cell(lambda value: number(value.spread))),
        Field(
            Column("95 % slides", task, rank=2 + rank, ends=True),
            cell(lambda value: interval(value.low, value.high)),
        ),
        Field(Column("n", task, rank=3 + rank), cell(lambda value: count(value.n))),
    ]


def _mean(value: Value) -> Cell:
    return Cell("undefined") if value.mean is None else number(value.mean)


def costs(task: str, others: Sequence[Row]) -> list[Field]:
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
        Field(Column("FLOPs", task), metric(FLOPS)),
        Field(Column("of unpruned", task, rank=2), relative),
        Field(Column("ms", task, rank=2), metric("latency_median_ms")),
        Field(Column("MiB", task, rank=4), metric("peak_memory_mib")),
    ]


def against(task: str, name: str, shown: list[Row], found: dict[int, Difference], rank: int) -> list[Field]:
    def of(show: Callable[[Difference], Cell]) -> Callable[[Row], Cell]:
        def cell(row: Row) -> Cell:
            difference = found.get(shown.index(row))
            return EMPTY if difference is None else show(difference)

        return cell

    def verdict(difference: Difference) -> Cell:
        p = "" if difference.p is None else f" (p {difference.p:.2g})"
        return words(difference.verdict + p)

    return [
        Field(
            Column(f"Δ {name}", task, rank=rank),
            of(lambda d: signed(d.mean)),
        ),
        Field(
            Column(f"95 % Δ {name}", task, rank=rank + 2, ends=True), of(lambda d: interval(d.low, d.high))
        ),
        Field(Column(f"against {name}", task, number=False, rank=rank + 1), of(verdict)),
    ]
