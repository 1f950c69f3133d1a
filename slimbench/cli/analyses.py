"""`slimbench analyse`: what reducers keep."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from slimbench.cli.boards import OutFolder, console, records_of, written
from slimbench.cli.sweeps import OUT

FOLDER = "analysis"


def add_to(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command("analyse", short_help="What reducers keep.")(analyse)


def analyse(
    out: OutFolder = OUT,
    reducers: Annotated[
        list[str] | None,
        typer.Option(
            "--reducer", metavar="NAME", help="Only these rows, as the leaderboard calls them; default: all."
        ),
    ] = None,
    format: Annotated[
        str, typer.Option("--format", metavar="rich|md|csv|latex", help="How to write it.")
    ] = "rich",
) -> None:
    """What the reducers of a results folder keep, from the kept sets and predictions of the test slides.

    When patches leave and where the kept ones lie, what is left of the lesion, what reducers, rates and seeds
    keep in common beyond chance, and which predictions change: each with its 95 % interval over patients.
    docs/analyses.md says what a high value means. The values of every slide go to OUT/analysis/slides.csv.

    \b
    Examples:
      slimbench analyse slimbench-out
      slimbench analyse slimbench-out --reducer cropr --reducer random --format md
    """
    from slimbench.analysis.board import analyse as build
    from slimbench.errors import UsageError
    from slimbench.leaderboard.render import FORMATS
    from slimbench.runs.store import Store, write_whole

    if format not in ("rich", *FORMATS):  # said before the work and not after it
        raise UsageError(f"no format is called {format!r}; known: rich, {', '.join(FORMATS)}")
    records, store = records_of(out), Store(out)
    with _bar() as advance:
        found = build(store, records, reducers or (), advance)
    written(found.tables, format)
    if len(found.slides):
        path = out / FOLDER / "slides.csv"
        write_whole(path, found.slides.to_csv(index=False).encode(), replace=True)
        print(f"values of every slide: {path}", file=sys.stderr)


@contextmanager
def _bar() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on standard error, in a terminal."""
    import rich.progress

    screen = console(stderr=True)
    with rich.progress.Progress(
        rich.progress.TextColumn("{task.description}", markup=False),
        rich.progress.BarColumn(bar_width=24),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeElapsedColumn(),
        console=screen,
        transient=True,
        disable=not screen.is_terminal,
    ) as bars:
        bar = bars.add_task("", total=None)
        yield lambda what, done, total: bars.update(bar, description=what, completed=done, total=total)
