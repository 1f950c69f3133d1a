"""The memory of this process, and running a function in a fresh one.

A process that has worked before holds freed memory which the next peak may hide in; so what a pass takes
is read in a process that did nothing else.
"""

from __future__ import annotations

import contextlib
import ctypes
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from slimbench.errors import SlimbenchError

STATUS = Path("/proc/self/status")
CLEAR = Path("/proc/self/clear_refs")
EXPECTED = 3  # exit status of a process that raised a SlimbenchError


def resident_bytes() -> int:
    """Resident set of this process now, after freed memory went back to the system; the peak so far
    where the system does not tell."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    return _status("VmRSS") or _peak_ever()


def start_peak() -> None:
    """Let `peak_resident_bytes` count from here; without the kernel's help it counts from the start."""
    with contextlib.suppress(OSError):
        CLEAR.write_text("5")


def peak_resident_bytes() -> int:
    """The largest resident set since `start_peak`."""
    return _status("VmHWM") or _peak_ever()


def fresh(module: str, given: str) -> str:
    """What `answer` prints in a process of its own that runs `python -m module` and reads `given`.

    SlimbenchError with the message of the one that was raised there, or if the process was killed; for
    any other error RuntimeError with the traceback from there.
    """
    done = subprocess.run(
        [sys.executable, "-m", module], input=given, capture_output=True, text=True, check=False
    )
    if done.returncode == EXPECTED:
        raise SlimbenchError(done.stderr.strip().splitlines()[-1])
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        raise SlimbenchError(
            f"the measuring process ended by {name}; if memory ran out, measure fewer patches"
        )
    if done.returncode:
        raise RuntimeError(f"python -m {module} failed:\n{done.stderr}")
    return done.stdout


def answer(work: Callable[[str], str]) -> None:
    """The other side of `fresh`: print work(standard input)."""
    try:
        print(work(sys.stdin.read()))
    except SlimbenchError as error:
        print(error, file=sys.stderr)
        raise SystemExit(EXPECTED) from None


def _status(field: str) -> int | None:
    with contextlib.suppress(OSError):
        for line in STATUS.read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    return None


def _peak_ever() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
