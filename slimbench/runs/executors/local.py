"""Cells on this machine, each in a process of its own.

A cell that raises, runs out of memory, hangs or is killed leaves a failed record and the others go on.
Ctrl-C starts nothing new, ends what runs and marks nothing as failed; a second one does not wait.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing import connection
from pathlib import Path
from typing import Any

from slimbench.errors import CheckpointError, CohortError, PluginError, RecordError, TextError, UsageError
from slimbench.runs.cell import Progress
from slimbench.runs.executors.child import Child, check_plugins_json, run_cell_json
from slimbench.runs.provenance import cores, provenance
from slimbench.runs.record import Failure, Record
from slimbench.runs.store import LOGS
from slimbench.runs.work import Job, Watcher, Work

RUN_CELL = "slimbench.runs.cell:run_cell"
TICK = 0.25  # seconds between two looks at deadlines and Ctrl-C
AGAIN = 1.0  # seconds until claims that others held are asked for again
GRACE = 3.0  # seconds from "please end" to the end
IMPORT_LIMIT = 120.0  # seconds that plugins may take to be imported
CRASHES = {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL}


@dataclass
class _Running:
    """A cell in its process. outcome: the last message it sent, once there is one."""

    job: Job
    child: Child
    slot: int
    started: datetime
    clock: float
    kills_before: int
    progress: Progress | None = None
    outcome: dict[str, Any] | None = None

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.clock


class LocalExecutor:
    """Runs the cells of a Work, `jobs` at once.

    jobs     default: one per core, with one thread each; from 16 cores on one per 4 cores; with GPUs one
             per GPU. Given, each cell gets cores // jobs threads.
    timeout  seconds that a cell may take
    run      "module:function" of a cell, as slimbench.runs.cell.run_cell
    """

    def __init__(self, jobs: int | None = None, timeout: float | None = None, run: str = RUN_CELL) -> None:
        if jobs is not None and jobs < 1:
            raise UsageError(f"--jobs {jobs}: at least one cell has to run at a time")
        if timeout is not None and timeout <= 0:
            raise UsageError(f"--timeout {timeout}: a cell needs some seconds")
        self.gpus = gpus()
        self.jobs = jobs or len(self.gpus) or max(1, cores() // (1 if cores() < 16 else 4))
        self.threads = max(1, cores() // self.jobs)
        self.timeout = timeout
        self.run_cell = run
        self._next_look = 0.0

    def run(self, work: Work, watch: Watcher) -> None:
        """Run cells until none is left anywhere. Finished cells are in `work.finished`.

        Raises RecordError when the results folder can no longer be written, KeyboardInterrupt after Ctrl-C.
        """
        running: list[_Running] = []
        try:
            with _interrupts() as interrupted:
                while running or work.left:
                    self._fill(running, work, watch)
                    if running:
                        handles = [
                            handle for r in running for handle in (r.child.pipe, r.child.process.sentinel)
                        ]
                        connection.wait(handles, timeout=TICK)
                    elif work.left:
                        watch.elsewhere(work.owners())
                        time.sleep(TICK)
                    self._collect(running, work, watch)
                    work.claims.touch()
                    if interrupted.is_set():
                        self._end_all(running, work, watch)
                        raise KeyboardInterrupt
        finally:
            for cell in running:
                cell.child.close()
            work.claims.release_all()

    def _fill(self, running: list[_Running], work: Work, watch: Watcher) -> None:
        while len(running) < self.jobs and time.monotonic() >= self._next_look:
            job = work.next()
            if job is None:
                self._next_look = time.monotonic() + AGAIN
                return
            slot = min(set(range(self.jobs)) - {cell.slot for cell in running})
            gpu = self.gpus[slot % len(self.gpus)] if self.gpus else None
            log = work.store.out / LOGS / f"{job.key}.log"
            kills = _oom_kills()
            cell, out = job.cell.model_dump_json(), str(work.store.out)
            child = Child(run_cell_json, self.run_cell, cell, out, log=log, threads=self.threads, gpu=gpu)
            running.append(_Running(job, child, slot, datetime.now(UTC), time.monotonic(), kills))
            watch.started(job)

    def _collect(self, running: list[_Running], work: Work, watch: Watcher) -> None:
        """Take in what the processes sent; keep the records of those that ended or ran out of time."""
        for cell in list(running):
            ended = not cell.child.alive
            _listen(cell, watch)
            late = self.timeout is not None and cell.seconds > self.timeout
            if cell.outcome is not None:
                record = _record(cell)
            elif ended:
                record = _failed(cell, _death(cell))
            elif late:
                cell.child.stop(GRACE)
                record = _failed(cell, _timeout(cell))
            else:
                continue
            cell.child.close()
            running.remove(cell)
            work.finish(cell.job, record)
            self._next_look = 0.0  # another cell may have waited for its training
            cell.child.drop_log_if_empty()
            watch.finished(cell.job, record)

    def _end_all(self, running: list[_Running], work: Work, watch: Watcher) -> None:
        """End all processes; a cell that finishes meanwhile is kept, the others go back into the queue."""
        for cell in running:
            cell.child.signal(signal.SIGTERM)
        until = time.monotonic() + GRACE
        for cell in list(running):
            cell.child.process.join(max(0.0, until - time.monotonic()))
            _listen(cell, watch)
            cell.child.close()
            running.remove(cell)
            if cell.outcome is not None and cell.outcome["kind"] == "done":
                work.finish(cell.job, _record(cell))
            else:
                cell.child.log.unlink(missing_ok=True)
                work.put_back(cell.job)


def check_plugins(
    named: Sequence[tuple[str, str]], rows: Sequence[tuple[str, str, str]], cohort: str
) -> None:
    """slimbench.runs.grid.check_plugins, then slimbench.runs.checks.check_cohort, in a process of its own,
    whatever a plugin does to it.

    named, rows  as there
    cohort       name, or path of a cohort file
    Raises UsageError, CohortError or PluginError, one line each.
    """
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        asked = [[list(each) for each in group] for group in (named, rows)]
        child = Child(check_plugins_json, *asked, cohort, log=log, threads=1, gpu=None)
        at, until = "a plugin", time.monotonic() + IMPORT_LIMIT
        try:
            while time.monotonic() < until:
                connection.wait([child.pipe, child.process.sentinel], timeout=TICK)
                ended = not child.alive
                for message in child.messages():
                    if message["kind"] == "progress":
                        at, until = message["value"]["spec"], time.monotonic() + IMPORT_LIMIT
                    elif message["kind"] == "failed":
                        raise _as_error(message["value"], at)
                    else:
                        return
                if ended:
                    raise PluginError(
                        f"{at} ended the process that imported it (exit code {child.process.exitcode})"
                    )
            raise PluginError(f"{at} could not be imported within {IMPORT_LIMIT:.0f} s")
        finally:
            child.close()


def gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES writes them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [part.strip() for part in visible.split(",") if part.strip() not in ("", "-1")]
    devices = sorted(int(path.name[6:]) for path in Path("/dev").glob("nvidia[0-9]*"))
    return [str(number) for number in range(len(devices))]


def _listen(cell: _Running, watch: Watcher) -> None:
    for message in cell.child.messages():
        if message["kind"] == "progress":
            cell.progress = Progress(**message["value"])
            watch.progress(cell.job, cell.progress)
        elif message["kind"] == "stop":
            raise RecordError(message["value"])
        else:
            cell.outcome = message


def _record(cell: _Running) -> Record:
    assert cell.outcome is not None
    if cell.outcome["kind"] == "done":
        record = Record.model_validate_json(cell.outcome["value"])
        if record.key == cell.job.key:
            return record
        text = "the data or a plugin changed while the sweep was running; repeat the command"
        return _failed(cell, Failure(kind="error", type="Changed", message=text))
    facts = {key: value for key, value in cell.outcome["value"].items() if key != "ours"}
    return _failed(cell, Failure(**facts))


def _failed(cell: _Running, failure: Failure) -> Record:
    return failed_record(cell.job, failure, cell.started, cell.seconds)


def failed_record(job: Job, failure: Failure, started: datetime, seconds: float) -> Record:
    """The record of a cell that left none itself."""
    return Record(
        key=job.key,
        cell=job.cell,
        identity=job.identity,
        cohort_name=job.cohort_name,
        captions=job.captions,
        status="failed",
        failure=failure,
        provenance=provenance(),
        started=started,
        ended=datetime.now(UTC),
        seconds=seconds,
    )


def _death(cell: _Running) -> Failure:
    """What is known of a process that ended without a result."""
    code = cell.child.process.exitcode or 0
    where = f" {_where(cell)}"
    if code >= 0:
        text = f"the process ended with exit code {code} and no result{where}"
        return Failure(kind="error", type="ProcessExit", message=text, traceback=cell.child.tail())
    name = signal.Signals(-code).name
    if -code in CRASHES:
        text = f"the process crashed with {name}{where}"
        return Failure(kind="error", type=name, message=text, traceback=cell.child.tail())
    memory = -code == signal.SIGKILL and _oom_kills() > cell.kills_before
    reason = "by the kernel, which had run out of memory," if memory else f"by {name}"
    text = f"the process was killed {reason}{where}"
    return Failure(kind="oom" if memory else "killed", type=name, message=text, traceback=cell.child.tail())


def _timeout(cell: _Running) -> Failure:
    text = f"no result after {cell.seconds:.0f} s, {_where(cell)}; give cells more time with --timeout"
    return Failure(kind="timeout", type="Timeout", message=text, traceback=cell.child.tail())


def _where(cell: _Running) -> str:
    at = cell.progress
    return "before its first step" if at is None else f"in phase {at.phase} ({at.done} of {at.total})"


def _as_error(failure: dict[str, Any], spec: str) -> Exception:
    if failure["ours"]:
        kinds = {kind.__name__: kind for kind in (UsageError, CohortError, CheckpointError, TextError)}
        return kinds.get(failure["type"], PluginError)(failure["message"])
    return PluginError(f"{spec}: {failure['type']}: {failure['message']}")


def _oom_kills() -> int:
    """How many processes the kernel has killed in this control group for want of memory."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        group = Path("/proc/self/cgroup").read_text().strip().rpartition("::")[2].lstrip("/")
        for folder in (Path("/sys/fs/cgroup") / group, Path("/sys/fs/cgroup")):
            if (folder / "memory.events").is_file():
                found = re.search(r"^oom_kill (\d+)", (folder / "memory.events").read_text(), re.MULTILINE)
                return int(found[1]) if found else 0
    return 0


@contextlib.contextmanager
def _interrupts() -> Iterator[threading.Event]:
    """Ctrl-C and SIGTERM set an event, so that no record is cut in two; the second one raises."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def handle(number: int, frame: object) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
