"""`slimbench data`: the user's own slides, before anything is trained on them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Look at, describe and prepare your own slides."
)
CohortFile = Annotated[Path, typer.Argument(metavar="FILE.toml", help="A cohort file.")]


def add_to(parent: typer.Typer) -> None:
    """Add the commands of this file."""
    parent.add_typer(app, name="data")


@app.command("check")
def check(
    cohort: Annotated[
        str, typer.Argument(metavar="NAME|FILE.toml", help="The embedded cohort, or a cohort file.")
    ],
    read: Annotated[bool, typer.Option(help="Read every feature, or only tables and headers.")] = True,
) -> None:
    """Find what would spoil a number: missing, empty or broken features, duplicates, leakage, small classes.

    Exits with 2 if something would.

    \b
    Examples:
      slimbench data check digits
      slimbench data check my.toml --no-read
    """
    from slimbench.cohorts.check import check as look
    from slimbench.leaderboard.escape import one_line

    with _bar("reading slides") as advance:
        found = look(cohort, read, advance)
    for each in found:
        print(f"{each.severity:<8}{each.subject:<20}{one_line(each.message)}")
    errors = sum(each.severity == "error" for each in found)
    warnings = sum(each.severity == "warning" for each in found)
    print(f"{cohort}: {errors} errors, {warnings} warnings")
    if errors:
        raise typer.Exit(2)


@app.command("init")
def init(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where features and tables lie.")],
) -> None:
    """Write a commented cohort file for what lies in a folder, to standard output.

    \b
    Example:
      slimbench data init features/ > features/cohort.toml
    """
    from slimbench.cohorts.init import init as describe

    sys.stdout.write(describe(folder))


@app.command("split")
def split(
    cohort: CohortFile,
    out: Annotated[Path, typer.Option("--out", metavar="FILE.csv", help="The table to write.")] = Path(
        "splits.csv"
    ),
    fractions: Annotated[
        str, typer.Option("--fractions", metavar="TRAIN,VAL,TEST", help="Shares of the slides.")
    ] = "0.8,0.1,0.1",
    minimum: Annotated[
        int,
        typer.Option("--minimum", metavar="N", help="Leave out classes of fewer slides, before splitting."),
    ] = 10,
    by: Annotated[
        str, typer.Option("--by", metavar="patient|site", help="What no two splits may share.")
    ] = "patient",
    seed: Annotated[
        int, typer.Option("--seed", metavar="N", help="Of the order in which patients are dealt.")
    ] = 0,
) -> None:
    """Make patient-disjoint splits, stratified by class, and write them to a table.

    \b
    Example:
      slimbench data split my.toml --out splits.csv --minimum 30
    """
    from collections import Counter

    from slimbench.cohorts.splits import SplitRule, make_splits, write_splits
    from slimbench.cohorts.table import open_file
    from slimbench.errors import CohortError, UsageError

    try:
        train, val, test = (float(part) for part in fractions.split(","))
    except ValueError:
        raise UsageError(f"--fractions {fractions}: write three shares such as 0.8,0.1,0.1") from None
    if by not in ("patient", "site"):
        raise UsageError(f"--by {by}: slides can be split by patient or by site")
    rule = SplitRule((train, val, test), minimum, by, seed)  # type: ignore[arg-type]  # checked above
    with _bar("looking into features") as advance:
        opened = open_file(cohort, splits=False, advance=advance)
    if opened.cohort is None:
        raise CohortError(opened.findings[-1].message)
    made = make_splits(opened.cohort.slides, rule)
    write_splits(out, made, rule)
    counts = Counter(made.values())
    print(f"{out}: {', '.join(f'{counts[name]} {name}' for name in ('train', 'val', 'test'))}")


@app.command("pack")
def pack(
    cohort: CohortFile,
    folder: Annotated[
        Path | None,
        typer.Option("--to", metavar="DIR", help="Where the copies go. Default: the file's `packed`."),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option("--jobs", metavar="N", help="Processes. Default: one per core.")
    ] = None,
) -> None:
    """Repack features into files that are read many times faster; interrupted, it goes on from there.

    \b
    Example:
      slimbench data pack my.toml --to packed
    """
    from slimbench.cohorts.pack import pack as repack

    with _bar("packing slides") as advance:
        done = repack(cohort, folder, jobs, advance)
    print(f"{done.written} slides packed, {done.current} were; {done.bytes / 2**30:.2f} GiB")


@contextmanager
def _bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on standard error, where that is a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task(title, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)
