"""`slimbench compare` and `slimbench score`: numbers under a magnifying glass."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slimbench.cli.boards import OutFolder, console, records_of, written
from slimbench.cli.sweeps import OUT

if TYPE_CHECKING:
    from slimbench.runs.record import Record

Format = Annotated[str, typer.Option("--format", metavar="rich|md|csv|latex", help="How to write it.")]
Key = Annotated[str, typer.Argument(metavar="CELL", help="Key of a record in OUT, or the beginning of one.")]


def add_to(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command("compare", short_help="Two cells beside each other.")(compare)
    app.command("score", short_help="Numbers again, from predictions.")(score)


def compare(
    one: Key,
    other: Key,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The results folder of both.")] = OUT,
    format: Format = "rich",
) -> None:
    """Explain two cells: first what differs in how they came about, then their numbers.

    The keys stand in the last column of `slimbench export` and are the names of the records.

    \b
    Example:
      slimbench compare 3c08 b5aa --out slimbench-out
    """
    from slimbench.leaderboard.compare import reader
    from slimbench.leaderboard.explain import explain

    records = records_of(out)
    written(explain(_found(records, one, out), _found(records, other, out), reader(out)), format)


def score(
    out: OutFolder = OUT,
    method: Annotated[
        str,
        typer.Option(
            "--intervals", metavar="standard|wilson|percentile|bca", help="Of classification metrics."
        ),
    ] = "standard",
    format: Format = "rich",
) -> None:
    """Compute metrics and intervals again from stored predictions, without a model, and look for slips.

    Exits with 2 if a record claims what its predictions do not give, or a number cannot be right.

    \b
    Examples:
      slimbench score slimbench-out
      slimbench score slimbench-out --intervals bca --format csv
    """
    from typing import get_args

    from slimbench.errors import RecordError, UsageError
    from slimbench.leaderboard.compare import reader
    from slimbench.leaderboard.published import sources
    from slimbench.leaderboard.score import doubts, table
    from slimbench.leaderboard.score import score as again
    from slimbench.statistics.intervals import Method

    if method not in get_args(Method):
        raise UsageError(f"no intervals are called {method!r}; known: {', '.join(get_args(Method))}")
    records = records_of(out)
    try:
        scored = list(again(records, reader(out), method))  # type: ignore[arg-type]  # checked above
    except OSError as error:
        raise RecordError(
            f"predictions cannot be read: {error}; slimbench sweep --rerun all makes them"
        ) from error
    written([table(scored)], format)
    found = doubts(records, sources())
    for each in found:
        console(stderr=True).print(f"{each.kind}: {each.where}: {each.message}", markup=False)
    if any(each.differs for each in scored) or any(each.kind == "error" for each in found):
        raise typer.Exit(2)


def _found(records: list[Record], key: str, out: Path) -> Record:
    from slimbench.errors import UsageError

    matching = [record for record in records if record.key.startswith(key)]
    if len(matching) != 1:
        keys = ", ".join(sorted(record.key for record in matching or records)[:5])
        raise UsageError(f"{len(matching)} records of {out} begin with {key!r}; there are {keys}, ...")
    return matching[0]
