"""A process of its own for one cell, or for looking at plugins: started by slimbench, able to die alone.

    parent  Child(function, *arguments, ...), then messages(), alive, stop(), close()
    child   function(*arguments, report) in a process group of its own, its output in a log file

Only JSON travels over the pipe, so the parent never has to import what the child has loaded.
"""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import importlib
import json
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
import traceback
import types
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from slimbench.errors import RecordError, SlimbenchError
from slimbench.runs.record import Cell

PRELOAD = ("torch", "sklearn.linear_model", "pandas", "scipy.stats", "pydantic", "safetensors.torch")
REPORT_EVERY = 0.1  # seconds between two progress messages
FULL = (errno.ENOSPC, errno.EDQUOT)
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")

Report = Callable[[dict[str, Any]], None]


class Child:
    """A running process and the pipe to it."""

    def __init__(
        self, function: Callable[..., Any], *arguments: Any, log: Path, threads: int, gpu: str | None
    ) -> None:
        """Start `function(*arguments, report)`, both importable and picklable, in a process of its own."""
        context = multiprocessing.get_context("forkserver")
        self.pipe, theirs = context.Pipe()
        self.log = log
        self.process = context.Process(
            target=_main, args=(theirs, function, arguments, str(log), threads, gpu)
        )
        with _no_main_module(), _one_thread():
            self.process.start()
        theirs.close()

    @staticmethod
    def preload(modules: tuple[str, ...] = PRELOAD) -> None:
        """Have the server that children are forked from import what all of them need, once and meanwhile."""
        multiprocessing.get_context("forkserver").set_forkserver_preload(list(modules))
        from multiprocessing import forkserver

        with _one_thread():
            forkserver.ensure_running()

    def messages(self) -> Iterator[dict[str, Any]]:
        """What has arrived since the last call."""
        with contextlib.suppress(EOFError, OSError):
            while self.pipe.poll():
                yield json.loads(self.pipe.recv_bytes())

    @property
    def alive(self) -> bool:
        return self.process.exitcode is None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process and to everything it started."""
        pid = self.process.pid
        assert pid is not None
        try:
            os.killpg(pid, number)
        except ProcessLookupError:  # all of it is gone, or it has not made its group yet
            if self.alive:
                os.kill(pid, number)

    def stop(self, grace: float) -> None:
        """Ask it to end, and after `grace` seconds make it."""
        self.signal(signal.SIGTERM)
        self.process.join(grace)
        self.close()

    def close(self) -> None:
        """End what is left of its process group and free the pipe."""
        self.signal(signal.SIGKILL)
        self.process.join()
        self.pipe.close()

    def drop_log_if_empty(self) -> None:
        """Most cells print nothing."""
        with contextlib.suppress(OSError):
            if self.log.stat().st_size == 0:
                self.log.unlink()

    def tail(self, lines: int = 60) -> str:
        """The end of what it printed."""
        try:
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
        except OSError:
            return ""


def run_cell_json(run: str, cell: str, out: str, report: Report) -> str:
    """Run `module:function` on a cell, both as JSON."""
    from slimbench.runs.cell import Progress

    module, _, name = run.partition(":")
    function = getattr(importlib.import_module(module), name)

    last = time.monotonic() - REPORT_EVERY

    def tell(progress: Progress) -> None:
        nonlocal last
        if time.monotonic() - last >= REPORT_EVERY:
            last = time.monotonic()
            report(vars(progress))

    record: str = function(Cell.model_validate_json(cell), Path(out), tell).model_dump_json()
    return record


def check_plugins_json(named: list[list[str]], rows: list[list[str]], cohort: str, report: Report) -> str:
    """slimbench.runs.grid.check_plugins and slimbench.runs.checks.check_cohort."""
    from slimbench.cohorts import open_cohort
    from slimbench.runs.checks import check_cohort
    from slimbench.runs.grid import check_plugins

    def tell(spec: str) -> None:
        report({"spec": spec})

    check_plugins(named, tell)
    check_cohort(named, open_cohort(cohort, lambda done, total: tell(cohort)), tell, rows)
    return "{}"


def _main(
    pipe: Connection, function: Any, arguments: tuple[Any, ...], log: str, threads: int, gpu: str | None
) -> None:
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    _redirect(log)
    faulthandler.enable(all_threads=False)
    faulthandler.register(signal.SIGTERM, all_threads=False, chain=True)  # a cell that hangs says where
    threading.Thread(target=_die_with_parent, args=(pipe,), daemon=True).start()
    _use_threads(threads)
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu

    def send(kind: str, value: Any) -> None:
        sys.stdout.flush()  # the parent ends this process as soon as it has the result
        sys.stderr.flush()
        with contextlib.suppress(BrokenPipeError):
            pipe.send_bytes(json.dumps({"kind": kind, "value": value}).encode())

    try:
        send("done", function(*arguments, lambda progress: send("progress", progress)))
    except RecordError as error:
        send("stop", str(error))
    except BaseException as error:  # noqa: BLE001  (also SystemExit, which a plugin may raise)
        full = isinstance(error, OSError) and error.errno in FULL
        if full:
            send("stop", f"{error}; free space there, and the same command goes on from here")
        else:
            send("failed", _failure(error))


def _failure(error: BaseException) -> dict[str, str | bool]:
    """slimbench.runs.record.Failure of an exception, and whether it is one that slimbench raised on purpose."""
    text = str(error) or type(error).__name__
    if isinstance(error, SystemExit):
        text = f"a plugin called sys.exit({error.code!r})"
    out_of_memory = isinstance(error, MemoryError) or re.search(
        r"out of memory|can't allocate memory|OutOfMemory|Unable to allocate",
        f"{type(error).__name__}: {text}",
    )
    return {
        "kind": "oom" if out_of_memory else "error",
        "type": type(error).__name__,
        "message": text,
        "traceback": "".join(traceback.format_exception(error)),
        "ours": isinstance(error, SlimbenchError),
    }


def _die_with_parent(pipe: Connection) -> None:
    """Nobody is left to take the result when the parent is gone: end this process and what it started."""
    with contextlib.suppress(EOFError, OSError):
        pipe.recv_bytes()
    os.killpg(0, signal.SIGKILL)


def _redirect(log: str) -> None:
    """Standard output and error into the log, also those of libraries and of processes started here."""
    sys.stdout.flush()
    sys.stderr.flush()
    file = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_APPEND, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)


def _use_threads(threads: int) -> None:
    os.environ.update(dict.fromkeys(THREADS, str(threads)))
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)
    if "numpy" in sys.modules:
        import threadpoolctl

        threadpoolctl.threadpool_limits(limits=threads)


@contextlib.contextmanager
def _no_main_module() -> Iterator[None]:
    """A child needs nothing of the caller's script, and running it again would start a sweep in each child."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """The server forks, so its libraries must not have started threads; each child sets its own number."""
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
