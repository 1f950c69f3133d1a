"""`slimbench sweep` and `slimbench run`: train and measure."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

Encoders = Annotated[
    list[str] | None,
    typer.Option(
        "--encoder", metavar="NAME", help="Slide encoder; several give a grid. Default: the cohort's own."
    ),
]
CohortName = Annotated[
    str,
    typer.Option("--cohort", metavar="NAME|FILE.toml", help="The embedded cohort, or the file of your own."),
]
Tasks = Annotated[
    list[str] | None,
    typer.Option(
        "--task", metavar="NAME", help="What to measure; several are run. Default: the cohort's own."
    ),
]
TextTower = Annotated[
    str | None, typer.Option("--text", metavar="NAME", help="Frozen text encoder. Default: the cohort's own.")
]
RecipeName = Annotated[
    str | None,
    typer.Option(
        "--recipe", metavar="NAME", help="How to train, as in paper:epochs=4. Default: the cohort's own."
    ),
]
Precision = Annotated[
    str, typer.Option("--precision", metavar="fp32|bf16", help="Of training and inference.")
]
TrainedAt = Annotated[
    float | None,
    typer.Option("--trained-at", metavar="RATE", help="Train at this rate alone and evaluate at every rate."),
]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Results folder; a second sweep adds to it.")]
Timeout = Annotated[float | None, typer.Option("--timeout", metavar="SECONDS", help="What a cell may take.")]
Rerun = Annotated[
    str,
    typer.Option(
        "--rerun",
        metavar="missing|failed|stale|all",
        help="Which cells to run: those without a record; these and failed ones; these and ones made by other "
        "slimbench code; all.",
    ),
]
OUT = Path("slimbench-out")


def add_to(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command("sweep", short_help="Train, measure and compare.")(sweep)
    app.command("run-cell", hidden=True)(run_cell)
    app.command("run", short_help="One cell of a sweep.")(run)


def sweep(
    reducers: Annotated[
        list[str] | None,
        typer.Option(
            "--reducer",
            metavar="NAME|FILE.py:CLASS",
            help="Token reducer, with arguments as in tome-local:window=256; several are compared. Default: cropr.",
        ),
    ] = None,
    rates: Annotated[
        str,
        typer.Option(
            "--rates",
            metavar="0.5-0.9|0.5,0.8",
            help="Pruning rates: 0.8 keeps 20 % of the patches. 0.5-0.9:0.2 skips.",
        ),
    ] = "0.5-0.9",
    encoders: Encoders = None,
    cohort: CohortName = "digits",
    tasks: Tasks = None,
    seeds: Annotated[
        str,
        typer.Option("--seeds", metavar="0-2|0,3", help="Training runs of each row; one decides nothing."),
    ] = "0",
    schedules: Annotated[
        list[str] | None,
        typer.Option(
            "--schedule",
            metavar="NAME",
            help="Where tokens leave: geometric (default), input, once:after=2, linear.",
        ),
    ] = None,
    recipe: RecipeName = None,
    text: TextTower = None,
    precision: Precision = "fp32",
    trained_at: TrainedAt = None,
    baselines: Annotated[
        bool,
        typer.Option(help="Also run no reducer, and mean-pool: the rows that all others are read against."),
    ] = True,
    out: Out = OUT,
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs",
            metavar="N",
            help="Cells at once; each has cores // N threads. Default: one per core, or per GPU.",
        ),
    ] = None,
    timeout: Timeout = None,
    executor: Annotated[
        str, typer.Option("--executor", metavar="local|slurm", help="Processes here, or a Slurm job array.")
    ] = "local",
    sbatch: Annotated[
        list[str] | None,
        typer.Option(
            "--sbatch", metavar="OPTION", help="For sbatch, as in --sbatch=--partition=gpu; several."
        ),
    ] = None,
    rerun: Rerun = "missing",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, say what would run, run nothing.")
    ] = False,
    print_: Annotated[
        bool, typer.Option("--print", help="With --executor slurm: show the batch script, submit nothing.")
    ] = False,
) -> None:
    """Train and measure encoders with token reducers between their blocks, and print the comparison.

    Each cell (encoder, reducer, rate, seed) runs in a process of its own and leaves one record. The same
    command again runs only what is missing; two sweeps on one folder share the work.

    \b
    The paper's study on the embedded cohort, a few minutes on a laptop:
      slimbench sweep --reducer cropr --rates 0.5-0.9
    Three seeds, two baselines, your own reducer and your own slides:
      slimbench sweep --reducer random --reducer tome --reducer mine.py:Mine --seeds 0-2 --cohort my.toml
    What would that run?
      slimbench sweep --reducer random --rates 0.9 --dry-run
    On a cluster; Ctrl-C leaves the jobs alone and the same command watches them again:
      slimbench sweep --reducer cropr --executor slurm --sbatch=--partition=gpu --sbatch=--time=2:00:00
    """
    if print_ and executor != "slurm":
        raise typer.BadParameter("--print shows the script of --executor slurm")
    planned = _sweep(
        dry_run or print_,
        out,
        reducers=reducers or ("cropr",),
        rates=rates,
        encoders=encoders or (),
        cohort=cohort,
        tasks=tasks or (),
        seeds=seeds,
        schedules=schedules or ("geometric",),
        recipe=recipe,
        text=text,
        precision=precision,
        trained_at=trained_at,
        baselines=baselines,
        jobs=jobs,
        timeout=timeout,
        executor=executor,
        sbatch=sbatch or (),
        rerun=rerun,
    )
    if print_:
        from slimbench.runs.executors.slurm import SLURM, SlurmExecutor

        script = SlurmExecutor(sbatch or (), jobs, timeout).script(out / SLURM / "TIME", planned)
        print(script, end="")


def run(
    reducer: Annotated[
        str, typer.Option("--reducer", metavar="NAME|FILE.py:CLASS", help="Token reducer.")
    ] = "cropr",
    rate: Annotated[
        float, typer.Option("--rate", metavar="RATE", help="Pruning rate: 0.8 keeps 20 %.")
    ] = 0.9,
    encoder: Annotated[
        str | None,
        typer.Option("--encoder", metavar="NAME", help="Slide encoder. Default: the cohort's own."),
    ] = None,
    cohort: CohortName = "digits",
    tasks: Tasks = None,
    seed: Annotated[
        int, typer.Option("--seed", metavar="N", help="Of weights, order and random choices.")
    ] = 0,
    schedule: Annotated[
        str, typer.Option("--schedule", metavar="NAME", help="Where tokens leave.")
    ] = "geometric",
    recipe: RecipeName = None,
    text: TextTower = None,
    precision: Precision = "fp32",
    trained_at: TrainedAt = None,
    out: Out = OUT,
    timeout: Timeout = None,
    rerun: Rerun = "missing",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, but do not run it.")] = False,
) -> None:
    """Run one cell of a sweep: one encoder, one reducer, one rate, one seed.

    \b
    Example:
      slimbench run --reducer cropr --rate 0.9 --seed 1
      slimbench run --reducer random --rate 0.5 --dry-run
    """
    _sweep(
        dry_run,
        out,
        reducers=reducer,
        rates=rate,
        encoders=encoder or (),
        cohort=cohort,
        tasks=tasks or (),
        seeds=seed,
        schedules=schedule,
        recipe=recipe,
        text=text,
        precision=precision,
        trained_at=trained_at,
        baselines=False,
        jobs=1,
        timeout=timeout,
        rerun=rerun,
    )


def run_cell(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Of one job array, in OUT/slurm.")],
    index: Annotated[int, typer.Option("--index", metavar="N", help="Which of its cells.")],
    timeout: Timeout = None,
    call: Annotated[
        str | None,
        typer.Option("--call", metavar="MODULE:FUNCTION", help="In place of the usual run of a cell."),
    ] = None,
) -> None:
    """Run one cell of a job array; the script that slimbench submits calls this.

    \b
    Example:
      slimbench run-cell slimbench-out/slurm/20260101-120000-ab12cd --index 0
    """
    from slimbench.runs.executors.local import RUN_CELL, LocalExecutor
    from slimbench.runs.executors.slurm import job_of
    from slimbench.runs.work import Watcher, Work

    job, store = job_of(folder, index)
    work = Work(store, [job])
    LocalExecutor(1, timeout, call or RUN_CELL).run(work, Watcher())
    if work.finished[job.key].status == "failed":
        raise typer.Exit(2)


def _sweep(dry_run: bool, out: Path, **asked: Any) -> int:
    """Run a sweep and print what came out; how many cells there were to run."""
    from slimbench.api import sweep as run_sweep
    from slimbench.cli.progress import Progress

    with Progress(dry_run) as watch:
        records = run_sweep(**asked, out=out, dry_run=dry_run, watch=watch)
    if dry_run:
        return watch.cells
    from slimbench.cli.boards import after_sweep

    after_sweep(records, out)
    if any(record.status == "failed" for record in records):
        raise typer.Exit(2)
    return watch.cells
