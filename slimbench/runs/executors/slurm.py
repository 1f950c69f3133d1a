"""Cells on a cluster: one Slurm job array of `slimbench run-cell`, watched through records and squeue.

    OUT/slurm/<time>-<hex>/cells.json     the cells of one array, by index
                           array.sh       what was submitted
                           job            the array's job id, once Slurm has given one
                           <index>.log    what a cell printed

What a cell left is its record; squeue only says who is still on the way, so no accounting database is
needed. The sweep may be interrupted: the arrays go on, and the same command watches them again.
"""

from __future__ import annotations

import json
import re
import secrets
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from slimbench.errors import RecordError, UsageError
from slimbench.runs.cell import Progress
from slimbench.runs.executors.local import RUN_CELL, failed_record
from slimbench.runs.record import Cell, Failure, Identity, Record
from slimbench.runs.store import Store, write_whole
from slimbench.runs.work import Job, Watcher, Work

SLURM, CELLS, SCRIPT, JOB = "slurm", "cells.json", "array.sh", "job"
POLL = 5.0  # seconds between two looks; squeue loads the controller
PATIENCE = 4  # looks at which a cell is neither queued nor recorded before it counts as lost
TASK_LIMIT = 1001  # Slurm's own default of MaxArraySize
Task = tuple[str, int]  # (job id of the array, index in it)


class SlurmExecutor:
    """Submits what is not queued yet and waits until every cell has a record.

    options  for sbatch, as `--partition=gpu`; each becomes a line of the script
    jobs     cells at once; None: as many as Slurm gives
    timeout  seconds that a cell may take; Slurm's own limit is `--time` among the options
    """

    def __init__(
        self,
        options: Sequence[str] = (),
        jobs: int | None = None,
        timeout: float | None = None,
        run: str = RUN_CELL,
    ) -> None:
        for option in options:
            if not re.fullmatch(r"-[^\n\r]+", option):
                raise UsageError(
                    f"--sbatch {option!r} is no option of sbatch; write --sbatch=--partition=gpu"
                )
        self.options = tuple(options)
        self.jobs = jobs
        self.timeout = timeout
        self.run_cell = run

    def script(self, folder: Path, cells: int) -> str:
        """The batch script of an array of `cells` whose cells.json lies in `folder`."""
        at_once = f"%{self.jobs}" if self.jobs else ""
        words = [sys.executable, "-m", "slimbench", "run-cell", str(folder.resolve())]
        words += ["--timeout", str(self.timeout)] if self.timeout else []
        words += ["--call", self.run_cell] if self.run_cell != RUN_CELL else []
        lines = [
            "#!/bin/bash",
            "#SBATCH --job-name=slimbench",
            f"#SBATCH --array=0-{cells - 1}{at_once}",
            f"#SBATCH --output={folder.resolve()}/%a.log",
            *(f"#SBATCH {option}" for option in self.options),
            f"cd {shlex.quote(str(Path.cwd()))} || exit 1",
            f'exec {shlex.join(words)} --index "$SLURM_ARRAY_TASK_ID"',
        ]
        return "\n".join(lines) + "\n"

    def run(self, work: Work, watch: Watcher) -> None:
        """Submit and wait; the records are in `work.finished`. Ctrl-C leaves the arrays running."""
        if shutil.which("sbatch") is None:
            raise UsageError("there is no sbatch on this machine; run the sweep where Slurm's commands are")
        tasks = _submitted(work.store)
        queued = _queue()
        if queued is None:
            raise RecordError(
                "squeue does not answer, so nobody knows what is queued already; try again later"
            )
        under_way = {tasks[task] for task in queued if task in tasks}
        new = [job for job in work.queued if job.key not in under_way]
        for first in range(0, len(new), limit := _array_limit()):
            tasks |= self._submit(work.store, new[first : first + limit])
        self._watch(work, watch, tasks)

    def _submit(self, store: Store, jobs: Sequence[Job]) -> dict[Task, str]:
        """Submit one array; {task: key of its cell}."""
        name = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
        folder = store.out / SLURM / name
        write_whole(folder / CELLS, json.dumps([_packed(job) for job in jobs]).encode(), replace=False)
        write_whole(folder / SCRIPT, self.script(folder, len(jobs)).encode(), replace=False)
        done = _ask("sbatch", "--parsable", str(folder / SCRIPT))
        if done.returncode:
            raise UsageError(f"sbatch refused {folder / SCRIPT}: {done.stderr.strip()}")
        number = done.stdout.strip().partition(";")[0]
        write_whole(folder / JOB, number.encode(), replace=False)
        return {(number, index): job.key for index, job in enumerate(jobs)}

    def _watch(self, work: Work, watch: Watcher, tasks: Mapping[Task, str]) -> None:
        missed: dict[str, int] = {}
        running: set[str] = set()
        task_of = {key: task for task, key in tasks.items()}
        while work.left:
            states = _queue()
            for job, record in work.collect():
                watch.finished(job, record)
            for job in work.queued if states is not None else ():
                state = (states or {}).get(task_of[job.key])
                missed[job.key] = 0 if state else missed.get(job.key, 0) + 1
                if state == "RUNNING" and job.key not in running:
                    running.add(job.key)
                    watch.started(job)
                    watch.progress(job, Progress("on Slurm", 0, 0, "_".join(map(str, task_of[job.key]))))
                if missed[job.key] >= PATIENCE and work.claims.holder(job.key) is None:
                    self._lost(work, watch, job, task_of[job.key])
            if work.left:
                time.sleep(POLL)

    def _lost(self, work: Work, watch: Watcher, job: Job, task: Task) -> None:
        """Record the failure of a cell whose task left the queue without a record."""
        if not work.take(job):
            return
        log = Path(work.store.out / SLURM).glob(f"*/{task[1]}.log")
        mine = [
            path
            for path in log
            if (path.parent / JOB).is_file() and (path.parent / JOB).read_text() == task[0]
        ]
        tail = "\n".join(mine[0].read_text(errors="replace").splitlines()[-60:]) if mine else ""
        record = failed_record(job, _why(task, tail), datetime.now(UTC), 0.0)
        work.finish(job, record)
        watch.finished(job, record)


def job_of(folder: Path, index: int) -> tuple[Job, Store]:
    """The cell of one array task, and the results folder that it belongs to."""
    try:
        cells = json.loads((folder / CELLS).read_bytes())
        packed = cells[index]
    except (OSError, ValueError, IndexError) as error:
        raise RecordError(
            f"{folder / CELLS} holds no cell {index}: {error}; submit the sweep again"
        ) from error
    before = None if packed["before"] is None else Record.model_validate(packed["before"])
    job = Job(
        Cell.model_validate(packed["cell"]),
        Identity.model_validate(packed["identity"]),
        packed["cohort_name"],
        packed["captions"],
        before,
    )
    return job, Store(folder.parent.parent)


def _packed(job: Job) -> dict[str, Any]:
    return {
        "cell": job.cell.model_dump(mode="json"),
        "identity": job.identity.model_dump(mode="json"),
        "cohort_name": job.cohort_name,
        "captions": job.captions,
        "before": None if job.before is None else job.before.model_dump(mode="json"),
    }


def _submitted(store: Store) -> dict[Task, str]:
    """{task: key} of every array that was ever submitted for this folder."""
    found = {}
    for path in (store.out / SLURM).glob(f"*/{JOB}"):
        number = path.read_text()
        for index in range(len(json.loads((path.parent / CELLS).read_bytes()))):
            found[number, index] = job_of(path.parent, index)[0].key
    return found


def _queue() -> dict[Task, str] | None:
    """{task: state} of this user's array tasks, None when squeue does not answer: then nothing is known."""
    done = _ask("squeue", "--noheader", "--array", "--me", "--format", "%F %K %T")
    if done.returncode:
        return None
    lines = [line.split() for line in done.stdout.splitlines()]
    return {(words[0], int(words[1])): words[2] for words in lines if len(words) == 3 and words[1].isdigit()}


def _array_limit() -> int:
    """How many tasks an array may have (MaxArraySize, whose value is the first index that is refused)."""
    found = re.search(r"MaxArraySize\s*=\s*(\d+)", _ask("scontrol", "show", "config").stdout)
    return int(found[1]) if found else TASK_LIMIT


def _why(task: Task, tail: str) -> Failure:
    """What Slurm still knows of a task that ended without a record."""
    done = _ask("scontrol", "--oneliner", "show", "job", "_".join(map(str, task)))
    found = re.search(r"JobState=(\w+) Reason=(\S+)", done.stdout)
    state, reason = found.groups() if found else ("UNKNOWN", "it is no longer known to Slurm")
    kinds: dict[str, Literal["timeout", "oom"]] = {"TIMEOUT": "timeout", "OUT_OF_MEMORY": "oom"}
    message = f"task {'_'.join(map(str, task))} left the queue without a record: {state}, {reason}"
    return Failure(kind=kinds.get(state, "killed"), type=f"Slurm {state}", message=message, traceback=tail)


def _ask(*words: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(words, check=False, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(words, 1, "", str(error))
