"""The Python face of `slimbench sweep`; the command calls it.

import slimbench

records = slimbench.sweep(["cropr", "random"], "0.5-0.9", seeds="0-2", out="out")
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from slimbench.cohorts import open_cohort
from slimbench.errors import UsageError
from slimbench.runs.cell import identify
from slimbench.runs.executors.child import Child
from slimbench.runs.executors.local import RUN_CELL, LocalExecutor, check_plugins
from slimbench.runs.executors.slurm import SlurmExecutor
from slimbench.runs.grid import grid
from slimbench.runs.record import Record
from slimbench.runs.store import Store
from slimbench.runs.work import Job, Rerun, Watcher, Work, plan


def sweep(
    reducers: str | Sequence[str] = ("cropr",),
    rates: str | float | Sequence[float] = "0.5-0.9",
    *,
    encoders: str | Sequence[str] = (),
    cohort: str = "digits",
    tasks: str | Sequence[str] = (),
    seeds: str | int | Sequence[int] = "0",
    schedules: str | Sequence[str] = ("geometric",),
    text: str | None = None,
    recipe: str | None = None,
    precision: str = "fp32",
    trained_at: float | None = None,
    baselines: bool = True,
    out: Path | str = "slimbench-out",
    jobs: int | None = None,
    timeout: float | None = None,
    executor: str = "local",
    sbatch: str | Sequence[str] = (),
    rerun: Rerun = "missing",
    dry_run: bool = False,
    watch: Watcher | None = None,
    run_cell: str = RUN_CELL,
) -> list[Record]:
    """Train and measure every cell of a grid that has no record in `out` yet; the records of all of them.

    The first eleven parameters are slimbench.runs.grid.grid's: plugins are named as on the command line,
    and what is left out is the cohort's own default.

    baselines  also run the reducer `none` at rate 0 and the encoder `mean-pool`
    out        the results folder; two sweeps on one folder share the work
    jobs       cells at once (default: one per core, fewer on machines with many)
    timeout    seconds that a cell may take
    executor   "local": processes on this machine; "slurm": a job array, with the options `sbatch` for it
    rerun      "missing", "failed", "stale" (made by other code) or "all"
    dry_run    check everything and tell `watch` what would run, but run nothing
    watch      is told what happens; silent by default
    run_cell   "module:function" in place of slimbench.runs.cell.run_cell

    A cell that fails has a record with status "failed" and the others go on. Raises UsageError, CohortError
    or PluginError before anything is trained, RecordError when `out` can no longer be written.
    """
    watch = watch or Watcher()
    request = grid(
        reducers,
        rates,
        encoders=encoders,
        cohort=cohort,
        tasks=tasks,
        seeds=seeds,
        schedules=schedules,
        text=text,
        recipe=recipe,
        precision=precision,
        trained_at=trained_at,
        baselines=baselines,
    )
    runner = executor_called(executor, jobs, timeout, sbatch, run_cell)
    store = Store(out)
    opened = open_cohort(request.cohort, watch.opening)
    wanted = [
        Job(cell, identify(cell, opened), opened.name, opened.captions)
        for cell in request.cells(opened.defaults)
    ]
    todo, done, corrupt = plan(wanted, store, rerun)
    if todo:
        Child.preload()
        check_plugins(request.plugins(opened.defaults), request.rows(opened.defaults), request.cohort)
    watch.planned(todo, done, corrupt)
    if todo and not dry_run:
        store.prepare()
        if rerun == "all":
            for job in todo:
                store.forget_training(job.training_key)
        work = Work(store, todo)
        runner.run(work, watch)
        done |= work.finished
    return [done[job.key] for job in wanted if job.key in done]


def executor_called(
    name: str,
    jobs: int | None = None,
    timeout: float | None = None,
    sbatch: str | Sequence[str] = (),
    run_cell: str = RUN_CELL,
) -> LocalExecutor | SlurmExecutor:
    """What runs the cells; UsageError for another name, or for options that it does not take."""
    options = (sbatch,) if isinstance(sbatch, str) else tuple(sbatch)
    if name == "slurm":
        return SlurmExecutor(options, jobs, timeout, run_cell)
    if name != "local":
        raise UsageError(f"no executor is called {name!r}; known: local, slurm")
    if options:
        raise UsageError(f"--sbatch {options[0]} is for --executor slurm")
    return LocalExecutor(jobs, timeout, run_cell)
