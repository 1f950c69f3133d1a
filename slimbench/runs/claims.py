"""Who is running which cell, so that two sweeps on one results folder share the work.

A claim is a file that only one process can create. It names its owner; a claim whose owner is dead is
taken over: at once when the owner ran on this machine, elsewhere when the claim was not touched for
two minutes by the clock of the machine that holds the folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from slimbench.errors import RecordError
from slimbench.runs.store import ABANDONED_AFTER

TOUCH_EVERY = 15.0  # seconds; well under ABANDONED_AFTER


@dataclass(frozen=True)
class Owner:
    """A process, told apart from one of the same number before a reboot or in another container."""

    host: str
    boot: str
    space: str
    pid: int
    born: str
    token: str

    @classmethod
    def me(cls) -> Owner:
        """This process, with a fresh token."""
        pid = os.getpid()
        return cls(socket.gethostname(), _boot(), _space(), pid, _born(pid), secrets.token_hex(8))

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


class Claims:
    """The claims that this process holds in one folder, and a look at those of others."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.me = Owner.me()
        self._held: set[str] = set()
        self._touched = time.monotonic()

    def take(self, key: str) -> bool:
        """Claim a cell; False while a living process holds it."""
        if self._create(key):
            return True
        with self._lock():
            if self.holder(key) is not None:
                return False
            self._path(key).unlink(missing_ok=True)
            return self._create(key)

    def holder(self, key: str) -> str | None:
        """Who holds a cell, in words; None if nobody alive does."""
        owner = self._read(key)
        if owner is None:  # being written at this moment, or damaged
            return None if self._untouched(key) else "another process"
        if (owner.host, owner.boot, owner.space) == (self.me.host, self.me.boot, self.me.space):
            return str(owner) if _born(owner.pid) == owner.born else None
        return None if self._untouched(key) else str(owner)

    def touch(self) -> None:
        """Show that the claims are alive; cheap enough to be called in any loop."""
        if time.monotonic() - self._touched < TOUCH_EVERY:
            return
        self._touched = time.monotonic()
        for key in self._held:
            with contextlib.suppress(OSError):
                os.utime(self._path(key))

    def release(self, key: str) -> None:
        """Give a cell back, unless somebody has taken it over meanwhile."""
        self._held.discard(key)
        with self._lock():
            owner = self._read(key)
            if owner is not None and owner.token == self.me.token:
                with contextlib.suppress(OSError):
                    self._path(key).unlink(missing_ok=True)

    def release_all(self) -> None:
        """Give back every cell."""
        for key in list(self._held):
            self.release(key)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.json"

    def _create(self, key: str) -> bool:
        try:
            file = os.open(self._path(key), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        except OSError as error:
            raise RecordError(
                f"{self._path(key)} cannot be written: {error.strerror}; free space there or choose another --out"
            ) from error
        try:
            os.write(file, json.dumps(asdict(self.me)).encode())
        finally:
            os.close(file)
        self._held.add(key)
        return True

    def _read(self, key: str) -> Owner | None:
        try:
            return Owner(**json.loads(self._path(key).read_bytes()))
        except (OSError, ValueError, TypeError):
            return None

    def _untouched(self, key: str) -> bool:
        """Whether a claim is gone or was not touched for long, by the clock that stamps the folder's files."""
        probe = self.folder / f".clock.{os.getpid()}.{secrets.token_hex(4)}.tmp"
        try:
            probe.touch()
            return probe.stat().st_mtime - self._path(key).stat().st_mtime > ABANDONED_AFTER
        except FileNotFoundError:
            return True
        finally:
            probe.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        """One process at a time takes over or gives back; the kernel frees it when a process dies."""
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError):  # a file system without locks
                file = stack.enter_context((self.folder / ".lock").open("w"))
                fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _boot() -> str:
    return _text(Path("/proc/sys/kernel/random/boot_id"))


def _space() -> str:
    """The process namespace: process numbers mean something only inside it."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _born(pid: int) -> str:
    """When a process was started, in clock ticks since boot; "" if it is not running (or a zombie)."""
    stat = _text(Path(f"/proc/{pid}/stat"))
    if stat:
        fields = stat.rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    if Path("/proc/self/stat").exists():
        return ""
    try:  # no /proc: alive or not is all that can be asked
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        pass
    return "alive"


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
