"""`slimbench profile`: what encoders and reducers cost on this machine."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from slimbench.cli.sweeps import OUT, Out, Precision

if TYPE_CHECKING:
    from slimbench.measure.subject import Subject

PROFILES = "profiles"
LARGE = 4096  # patches from which one timed pass on the CPU is the default


def add_to(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command("profile")(profile)


def profile(
    reducers: Annotated[
        list[str] | None,
        typer.Option(
            "--reducer",
            metavar="NAME|FILE.py:CLASS",
            help="Token reducer; several are compared. Default: cropr.",
        ),
    ] = None,
    rates: Annotated[
        str, typer.Option("--rates", metavar="0.5-0.9|0.5,0.8", help="Pruning rates.")
    ] = "0.5-0.9",
    encoder: Annotated[str, typer.Option("--encoder", metavar="NAME", help="Slide encoder.")] = "slim-base",
    tokens: Annotated[
        str,
        typer.Option("--tokens", metavar="N[,N]", help="Patches of made slides; 17182 is the paper's slide."),
    ] = "17182",
    cohort: Annotated[
        str | None,
        typer.Option(
            "--cohort", metavar="NAME|FILE.toml", help="Instead: slides at equal steps of its sizes."
        ),
    ] = None,
    slides: Annotated[int, typer.Option("--slides", metavar="N", help="How many slides of the cohort.")] = 8,
    dim: Annotated[
        int, typer.Option("--dim", metavar="N", help="Width of the features of made slides.")
    ] = 768,
    schedule: Annotated[
        str, typer.Option("--schedule", metavar="NAME", help="Where tokens leave.")
    ] = "geometric",
    precision: Precision = "fp32",
    repeats: Annotated[
        int | None,
        typer.Option(
            "--repeats",
            metavar="N",
            help=f"Timed passes per slide. Default: 5, on the CPU 1 from {LARGE} patches on.",
        ),
    ] = None,
    form: Annotated[
        str, typer.Option("--format", metavar="rich|md|csv|latex", help="Of the table on standard output.")
    ] = "rich",
    out: Out = OUT,
) -> None:
    """Measure what an encoder costs with each reducer: FLOPs three ways, latency, memory, tokens.

    Every row runs in a fresh process, untrained (weights change no cost), and leaves a JSON in OUT/profiles;
    the same row again replaces it. FLOPs are 2 x multiply-accumulates of matrix products; that torch's and
    fvcore's counters agree with the encoder's own statement to the unit is checked in every row.

    \b
    The paper's table 5 beside ours (a few minutes on 2 cores):
      slimbench profile --encoder slim --reducer cropr --rates 0.5-0.9 --tokens 17182
    All sizes of your own slides:
      slimbench profile --cohort my.toml --reducer tome --rates 0.8
    """
    from slimbench.cli.boards import console
    from slimbench.errors import SlimbenchError, UsageError
    from slimbench.leaderboard.profiles import profile_table
    from slimbench.leaderboard.render import FORMATS, print_tables
    from slimbench.measure.profile import profile_in_fresh_process
    from slimbench.runs.provenance import provenance
    from slimbench.runs.store import write_whole

    if form not in ("rich", *FORMATS):
        raise UsageError(f"no format is called {form!r}; known: rich, {', '.join(FORMATS)}")
    asked = _subjects(
        reducers or ["cropr"], rates, encoder, tokens, cohort, slides, dim, schedule, precision, repeats
    )
    folder, found = out / PROFILES, []
    for subject in _with_bar(asked):
        try:
            measured = profile_in_fresh_process(subject, provenance())
        except SlimbenchError as error:
            print(f"{subject}: {error}", file=sys.stderr)
            continue
        text = measured.model_dump_json(indent=1)
        write_whole(folder / f"{subject.key}.json", text.encode(), replace=True)
        found.append(measured)
    tables = [profile_table(found)]
    if form == "rich":
        print_tables(tables, console())
    else:
        sys.stdout.write(FORMATS[form](tables))
    print(f"{len(found)} profiles: {folder}/", file=sys.stderr)
    if len(found) < len(asked):
        raise typer.Exit(2)


def _subjects(
    reducers: Sequence[str],
    rates: str,
    encoder: str,
    tokens: str,
    cohort: str | None,
    slides: int,
    dim: int,
    schedule: str,
    precision: str,
    repeats: int | None,
) -> list[Subject]:
    """The unpruned row and each reducer at each rate, for each number of patches."""
    import torch

    from slimbench.cohorts.cohort import Defaults
    from slimbench.errors import UsageError
    from slimbench.measure.subject import Subject
    from slimbench.runs.grid import NO_REDUCER, grid

    try:
        sizes = [int(part) for part in tokens.split(",")]
    except ValueError:
        sizes = [0]
    if min(sizes) < 1:
        raise UsageError(f"--tokens {tokens!r}: expected numbers of patches such as 17182 or 1000,17182")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    names = (NO_REDUCER, *reducers)
    rows = grid(names, rates, encoders=encoder, schedules=schedule, precision=precision, baselines=False)
    made = []
    for size in [None] if cohort else sizes:
        few = 1 if device == "cpu" and size is not None and size >= LARGE else 5
        for cell in rows.cells(Defaults()):
            made.append(
                Subject(
                    encoder=cell.encoder,
                    reducer=cell.reducer,
                    rate=cell.rate,
                    schedule=cell.schedule,
                    precision=cell.precision,
                    patches=size,
                    dim=dim,
                    cohort=cohort,
                    slides=slides,
                    repeats=repeats or few,
                    device=device,
                )
            )
    return made


def _with_bar(subjects: Sequence[Subject]) -> Iterator[Subject]:
    """The subjects, each while a bar on standard error says what is measured and how long it may take."""
    import rich.progress
    from rich.console import Console

    from slimbench.measure.subject import expected_seconds

    console = Console(stderr=True, highlight=False)
    seconds = [expected_seconds(subject) for subject in subjects]
    with rich.progress.Progress(
        rich.progress.TextColumn("{task.description}", markup=False),
        rich.progress.BarColumn(bar_width=24),
        rich.progress.TaskProgressColumn(),
        rich.progress.TimeElapsedColumn(),
        rich.progress.TextColumn("of about {task.fields[total_text]}", markup=False),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as bars:
        bar = bars.add_task("", total=sum(seconds), total_text=_duration(sum(seconds)))
        for number, (subject, expected) in enumerate(zip(subjects, seconds, strict=True), 1):
            line = f"[{number}/{len(subjects)}] {subject}"
            bars.update(bar, description=line)
            if not console.is_terminal:
                console.print(f"{line}, about {_duration(expected)}", markup=False)
            yield subject
            bars.advance(bar, expected)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
