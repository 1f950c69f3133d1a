"""`slimbench leaderboard` and `slimbench export`: what came out."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from slimbench.leaderboard.table import Table
    from slimbench.runs.record import Record

OutFolder = Annotated[Path, typer.Argument(metavar="[OUT]", help="A results folder.")]
WIDE = 400  # columns, where nobody looks at a screen


def add_to(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command("leaderboard", short_help="Compare what came out.")(leaderboard)
    app.command("export", short_help="Every number, as CSV.")(export)


def leaderboard(
    out: OutFolder = Path("slimbench-out"),
    format: Annotated[
        str, typer.Option("--format", metavar="rich|md|csv|latex|html", help="How to write it.")
    ] = "rich",
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            "--task", metavar="NAME", help="Show every metric of this task instead of the primary ones."
        ),
    ] = None,
) -> None:
    """Compare the rows of a results folder, and the published ones beside them.

    A row is a setting with its seeds averaged: its spread over seeds and its interval over slides are
    different columns.

    \b
    Examples:
      slimbench leaderboard slimbench-out
      slimbench leaderboard slimbench-out --task linear-probe --format latex
      slimbench leaderboard slimbench-out --format html > leaderboard.html
    """
    from slimbench.leaderboard.board import leaderboard as build
    from slimbench.leaderboard.compare import reader
    from slimbench.leaderboard.html import to_html
    from slimbench.leaderboard.published import published

    records = records_of(out)
    tables = (*build(records, tasks or (), reader(out)), *published())
    if format == "html":
        sys.stdout.write(to_html(records, tables))
    else:
        written(tables, format)


def export(out: OutFolder = Path("slimbench-out")) -> None:
    """Write every number of a results folder to standard output, one a line, as CSV.

    \b
    Example:
      slimbench export slimbench-out > numbers.csv
    """
    from slimbench.leaderboard.tidy import write_tidy

    write_tidy(records_of(out), sys.stdout)


def after_sweep(records: Sequence[Record], out: Path) -> None:
    """What a sweep ends with: the comparison, why cells failed, where everything lies."""
    from slimbench.leaderboard.board import leaderboard as build
    from slimbench.leaderboard.compare import reader
    from slimbench.leaderboard.escape import one_line
    from slimbench.leaderboard.html import to_html
    from slimbench.leaderboard.published import published
    from slimbench.leaderboard.render import print_tables, to_markdown
    from slimbench.runs.store import Store, write_whole

    every = records_of(out)
    tables = build(every, read=reader(out))
    print_tables(tables, console())
    files = {"leaderboard.md": to_markdown, "leaderboard.html": lambda tables: to_html(every, tables)}
    for name, render in files.items():
        write_whole(out / name, render((*tables, *published())).encode(), replace=True)
    print(
        f"records, predictions and weights: {Store(out).out}/  tables: {', '.join(str(out / name) for name in files)}"
    )
    reasons: dict[str, int] = {}
    for record in records:
        if record.failure is not None:
            reason = one_line(f"{record.failure.type}: {record.failure.message}")
            reasons[reason] = reasons.get(reason, 0) + 1
    for reason, cells in reasons.items():
        print(f"{cells} cell{'s' * (cells > 1)} failed: {reason}", file=sys.stderr)


def records_of(out: Path) -> list[Record]:
    """The readable records of a folder; names the others on standard error."""
    from slimbench.errors import RecordError
    from slimbench.leaderboard.escape import one_line
    from slimbench.runs.store import RECORDS, Store

    if not (out / RECORDS).is_dir():
        raise RecordError(
            f"{out} is no results folder: it has no {RECORDS}/; slimbench sweep --out {out} makes one"
        )
    scan = Store(out).scan()
    for path, why in scan.corrupt.items():
        print(one_line(f"{path} cannot be read and is left out: {why}"), file=sys.stderr)
    return list(scan.records.values())


def written(tables: Iterable[Table], format: str) -> None:
    """Write tables to standard output; UsageError for a format that is not known."""
    from slimbench.errors import UsageError
    from slimbench.leaderboard.render import FORMATS, print_tables

    if format == "rich":
        print_tables(tables, console())
    elif format in FORMATS:
        sys.stdout.write(FORMATS[format](tables))
    else:
        raise UsageError(f"no format is called {format!r}; known: rich, {', '.join(FORMATS)}")


def console(stderr: bool = False) -> Console:
    """A console that breaks no line where nobody looks at a screen."""
    from rich.console import Console

    seen = (sys.stderr if stderr else sys.stdout).isatty()
    return Console(highlight=False, stderr=stderr, width=None if seen else WIDE)
