"""`slimbench check reducer` and `slimbench new reducer`: the way in for a method of your own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

check_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Try a plugin against what its kind promises."
)
new_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Write the package of a plugin.")


def add_to(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.add_typer(check_app, name="check")
    app.add_typer(new_app, name="new")


@check_app.command("reducer")
def check_reducer(
    reducer: Annotated[
        str, typer.Argument(metavar="NAME|FILE.py:CLASS", help="With arguments as in a sweep.")
    ],
) -> None:
    """Try a reducer against every promise, and print the smallest input that breaks one.

    Exits with 2 if a promise is broken.

    \b
    Examples:
      slimbench check reducer cropr
      slimbench check reducer mine.py:Mine
    """
    from slimbench.conformance import check_reducer as check
    from slimbench.leaderboard.escape import one_line

    found = check(reducer)
    for promise in found:
        print(one_line(str(promise)) if "\n" in str(promise) else str(promise))
    kept = sum(promise.kept is True for promise in found)
    print(f"{reducer}: {'all' if kept == len(found) else f'{kept} of {len(found)} promises'} kept")
    if kept < len(found):
        raise typer.Exit(2)


@new_app.command("reducer")
def new_reducer(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Small letters, digits and hyphens.")],
    folder: Annotated[
        Path, typer.Option("--in", metavar="DIR", help="Where the package's folder is made.")
    ] = Path("."),
) -> None:
    """Write a package of one reducer, with its entry point, its tests and its README.

    \b
    Example:
      slimbench new reducer far-patches
    """
    from slimbench.scaffold import new_reducer as new

    for path in new(name, folder):
        print(path)
    print(f"next: pip install -e ./{folder / name}, then slimbench check reducer {name}")
