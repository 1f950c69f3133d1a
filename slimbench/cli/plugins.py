"""`slimbench check reducer` and `slimbench new reducer`: the way in for a method of your own."""

from __future__ import annotations

from typing import Annotated

import typer

check_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Try a plugin against what its kind promises."
)


def add_to(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.add_typer(check_app, name="check")


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
    broken = sum(promise.kept is False for promise in found)
    print(
        f"{reducer}: {len(found) - broken} of {len(found)} promises kept"
        if broken
        else f"{reducer}: all kept"
    )
    if broken:
        raise typer.Exit(2)
