"""Tables of quantities: what stands in each column for a row, or for a pair of rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from slimbench.analysis.quantities import Pooled, Quantity
from slimbench.leaderboard.columns import Field, identity
from slimbench.leaderboard.rows import Row
from slimbench.leaderboard.table import EMPTY, Cell, Column, Table, count, interval, number, words


@dataclass(frozen=True)
class Line:
    """What is known of a row, or of it and another one, on so many seeds (or pairs of seeds) and slides."""

    row: Row
    found: Mapping[str, Pooled]
    seeds: int
    slides: int
    other: Row | None = None
    marks: Sequence[str] = ()


Heading = tuple[Column, Callable[[Line], Cell]]


def table(
    title: str,
    lines: Sequence[Line],
    headings: Sequence[Heading],
    notes: Sequence[str],
    without: Sequence[str] = (),
) -> Table:
    """What tells the rows apart, but for the columns `without`, then `headings`; a column in which nothing stands
    is left out."""
    known = [
        _of_row(field)
        for field in identity([line.row for line in lines])
        if field.column.title not in ("seeds", *without)
    ]
    shown = [
        (column, of) for column, of in (*known, *headings, MARKS) if any(of(line).text for line in lines)
    ]
    columns = tuple(column for column, _ in shown)
    return Table(title, columns, tuple(tuple(of(line) for _, of in shown) for line in lines), tuple(notes))


def _of_row(field: Field) -> Heading:
    return field.column, lambda line: field.of(line.row)


SEEDS: Heading = (Column("seeds"), lambda line: count(line.seeds))
SLIDES: Heading = (Column("slides", rank=3), lambda line: count(line.slides))
MARKS: Heading = (Column("marks", number=False), lambda line: words("; ".join(line.marks)))


def estimated(quantity: Quantity, rank: int, spread: bool = True) -> list[Heading]:
    """Mean, interval over slides, spread over seeds, and n where it is not that of all slides; a narrow screen drops
    the mean at `rank` and the others after all means."""
    group, of = quantity.name.replace("_", " "), _cell(quantity)

    def n(line: Line) -> Cell:
        pooled = line.found.get(quantity.name)
        return EMPTY if pooled is None or pooled.metric.n == line.slides else count(pooled.metric.n)

    return [
        mean(quantity, "mean", group, rank),
        ends(quantity, "95 % slides", group, rank + 2),
        *([(Column("± seeds", group, rank=4), of(lambda p: number(p.spread)))] if spread else []),
        (Column("n", group, rank=4), n),
    ]


def mean(quantity: Quantity, title: str, group: str, rank: int) -> Heading:
    """The mean alone."""
    return Column(title, group, rank=rank), _cell(quantity)(lambda pooled: number(pooled.metric.value))


def ends(quantity: Quantity, title: str, group: str, rank: int) -> Heading:
    """The interval alone."""
    of = _cell(quantity)(lambda pooled: interval(pooled.metric.low, pooled.metric.high))
    return Column(title, group, rank=rank, ends=True), of


def _cell(quantity: Quantity) -> Callable[[Callable[[Pooled], Cell]], Callable[[Line], Cell]]:
    """The cell of a line, from how a pooled quantity is shown."""

    def shown(show: Callable[[Pooled], Cell]) -> Callable[[Line], Cell]:
        def of(line: Line) -> Cell:
            pooled = line.found.get(quantity.name)
            return EMPTY if pooled is None else show(pooled)

        return of

    return shown
