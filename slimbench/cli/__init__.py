"""The words a user types; parses, calls, prints. Nothing heavy is imported before a command needs it.

    slimbench --help

Exit codes: 0 done, 1 a mistake in what was asked or given (one line on standard error), 2 done, but
cells failed or a check found something, 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import typer

from slimbench.cli import analyses, boards, data, doctor, listing, maps, plugins, profile, scores, sweeps
from slimbench.errors import SlimbenchError
from slimbench.leaderboard.escape import one_line

INTERRUPTED = 130
ClickError: Any = typer.BadParameter.__mro__[2]  # the base of all errors of parsing, wherever click lives

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
    help="""What token reducers cost and keep in whole-slide models: trained, measured, compared.

\b
  slimbench sweep --reducer cropr --rates 0.5-0.9      the main job, on the embedded cohort
  slimbench leaderboard slimbench-out --format html    what came out, as a page
  slimbench list reducers                              what there is to compare
  slimbench sweep --help                               every command has an example
""",
)
sweeps.add_to(app)
boards.add_to(app)
analyses.add_to(app)
maps.add_to(app)
scores.add_to(app)
profile.add_to(app)
listing.add_to(app)
plugins.add_to(app)
data.add_to(app)
doctor.add_to(app)


@app.callback(invoke_without_command=True)
def _version(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", help="Print the version and exit."),
) -> None:
    if version:
        import importlib.metadata

        typer.echo(importlib.metadata.version("slimbench"))
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main() -> None:
    """The console command."""
    sys.exit(run(sys.argv[1:]))


def run(words: Sequence[str]) -> int:
    """Run one command line and hand back its exit code."""
    try:
        code = app(args=list(words), prog_name="slimbench", standalone_mode=False)
    except SlimbenchError as error:
        return _said(f"slimbench: {one_line(str(error))}")
    except ClickError as error:
        context = getattr(error, "ctx", None)
        if context is not None and error.format_message() == context.get_help():  # a group without a command
            print(context.get_help())
            return 0
        path = context.command_path if context is not None else "slimbench"
        return _said(f"{path}: {one_line(error.format_message())} See {path} --help")
    except (KeyboardInterrupt, typer.Abort):  # which of them, or 130, depends on typer's version
        code = INTERRUPTED
    if code == INTERRUPTED:
        print("slimbench: interrupted; the same command goes on from here", file=sys.stderr)
    return code if isinstance(code, int) else 0


def _said(line: str) -> int:
    print(line, file=sys.stderr)
    return 1
