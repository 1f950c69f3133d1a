"""A table before it has a format: what stands in it, as words and as numbers."""

from __future__ import annotations

from dataclasses import dataclass, field

UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True)
class Column:
    """A heading.

    group  what it shares with its neighbours
    rank   the higher, the sooner a narrow screen drops it
    ends   whether its cells are intervals, whose value is (low, high)
    """

    title: str
    group: str = ""
    number: bool = True
    rank: int = 0
    ends: bool = False


@dataclass(frozen=True)
class Cell:
    """What a person reads, and what a spreadsheet or a sort gets: a number, an interval, a text, or None."""

    text: str
    value: float | tuple[float, float] | str | None = None


@dataclass(frozen=True)
class Table:
    """Columns and rows of cells; every row is as long as `columns`. notes: lines below it."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = field(default=())


EMPTY = Cell("")


def words(text: str) -> Cell:
    """A cell of text."""
    return Cell(text, text)


def number(value: float | None, digits: int = 3) -> Cell:
    """A number with `digits` decimals; from 10 on fewer, from 10,000 on with a unit: 0.934, 32.0, 1.20 T."""
    if value is None:
        return EMPTY
    if value == 0:
        return Cell("0", value)
    size = abs(value)
    if size >= 1e4:
        factor, unit = next((pair for pair in UNITS if size >= pair[0]), UNITS[-1])
        return Cell(f"{value / factor:.3g} {unit}", value)
    return Cell(f"{value:.{digits if size < 10 else 1}f}", value)


def signed(value: float | None) -> Cell:
    """A difference: `+0.102`, `-1.20 T`."""
    cell = number(value)
    return cell if value is None or value < 0 else Cell(f"+{cell.text}", value)


def interval(low: float | None, high: float | None) -> Cell:
    """`0.910 to 0.954`."""
    if low is None or high is None:
        return EMPTY
    return Cell(f"{number(low).text} to {number(high).text}", (low, high))


def percent(share: float | None) -> Cell:
    """A share as `8.3 %`."""
    return EMPTY if share is None else Cell(f"{100 * share:.1f} %", share)


def count(value: int) -> Cell:
    """A whole number, written out."""
    return Cell(f"{value:,}".replace(",", " "), value)
