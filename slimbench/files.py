"""Files that appear whole or not at all, files told apart by what they hold, and the user's cache folder."""

from __future__ import annotations

import functools
import hashlib
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/slimbench`, by default `~/.cache/slimbench`; not created here."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "slimbench"


def content_hash(path: Path, files: Iterable[Path] | None = None) -> str:
    """16 hex digits of what a file holds, or of the names and contents of the files in a folder.

    files  those of the folder that count; default: all below it, hidden ones left out

    Names are relative to the folder, and a file's own name does not count: a copy elsewhere has the same hash.
    """
    if path.is_file():
        return _digest_of(path)[:16]
    if files is None:
        below = (found for found in path.rglob("*") if found.is_file())
        files = (f for f in below if not any(part.startswith(".") for part in f.relative_to(path).parts))
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(f"{file.relative_to(path).as_posix()}\0{_digest_of(file)}".encode())
    return digest.hexdigest()[:16]


def _digest_of(file: Path) -> str:
    stat = file.stat()
    return _digest_of_state(file, stat.st_size, stat.st_mtime_ns, stat.st_ino)


@functools.cache
def _digest_of_state(file: Path, *state: int) -> str:
    """SHA-256 of a file, read once a process as long as its `state` holds: the cells of a sweep share weights."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def temporary_beside(path: Path) -> Path:
    """A hidden name in the folder of `path` that holds this process's number, so that others can see whether
    its writer is alive."""
    return path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends without an error.

    The file is flushed to the disk before it is renamed, so a reader, or the next process after a
    crash, sees the old file or the new one and never a part. The folder is created when missing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    try:
        yield temporary
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
