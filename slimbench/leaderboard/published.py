"""Numbers that others published: shown beside ours, marked as theirs, never mixed with ours."""

from __future__ import annotations

import importlib.resources

from pydantic import BaseModel, ConfigDict

from slimbench.leaderboard.table import EMPTY, Cell, Column, Table, number, words


class PublishedRow(BaseModel):
    """One row of a published table.

    table, cohort, row  where it stands in the source; a table may hold several cohorts
    rate                pruning rate, None for a system without one
    metrics             {slimbench's name: value as printed}
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    table: int
    cohort: str
    row: str
    rate: float | None = None
    metrics: dict[str, float]


class PublishedTable(BaseModel):
    """One published table, or its part about one cohort. note: what a reader has to know about it."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    table: int
    cohort: str
    title: str
    task: str
    note: str | None = None


class Source(BaseModel):
    """One publication: results/published/<name>.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    source: str
    tables: tuple[PublishedTable, ...]
    rows: tuple[PublishedRow, ...]


def sources() -> tuple[Source, ...]:
    """Every file of results/published."""
    folder = importlib.resources.files("slimbench.results") / "published"
    files = sorted(
        (item for item in folder.iterdir() if item.name.endswith(".json")), key=lambda item: item.name
    )
    return tuple(Source.model_validate_json(item.read_text()) for item in files)


def published() -> tuple[Table, ...]:
    """Every published table, each marked with its source."""
    return tuple(_table(source, table) for source in sources() for table in source.tables)


def _table(source: Source, table: PublishedTable) -> Table:
    found = [row for row in source.rows if (row.table, row.cohort) == (table.table, table.cohort)]
    metrics = list(dict.fromkeys(name for row in found for name in row.metrics))
    columns = (
        Column("published", number=False),
        Column("in table"),
        Column("rate"),
        *(Column(name.replace("_", " "), table.task) for name in metrics),
    )
    lines = tuple(
        (
            words(row.row),
            Cell(f"{row.table}", row.table),
            EMPTY if row.rate is None else Cell(f"{row.rate:g}", row.rate),
            *(_as_printed(row.metrics.get(name)) for name in metrics),
        )
        for row in found
    )
    notes = (
        f"{source.source}, table {table.table}: as published, not measured here",
        *filter(None, [table.note]),
    )
    return Table(f"Published: {table.title}", columns, lines, notes)


def _as_printed(value: float | None) -> Cell:
    return number(value) if value is None or value >= 1e4 else Cell(f"{value:.3f}", value)
