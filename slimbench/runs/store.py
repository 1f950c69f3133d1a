"""The results folder: files that appear whole or not at all, and a reader that survives what it finds.

A record is written once. A second run of the same cell leaves the first one's record alone, unless it was
asked to replace it; a file that cannot be read is named and its cell runs again.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import re
import secrets
import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from slimbench.errors import RecordError
from slimbench.files import temporary_beside
from slimbench.runs.provenance import source_hash
from slimbench.runs.record import SCHEMA_VERSION, Record, Training

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

RECORDS, PREDICTIONS, KEPT, MODELS = "records", "predictions", "kept", "models"
CLAIMS, LOGS = "claims", "logs"
# What numpy and zipfile raise for an .npz that was cut or has other bytes in it.
DAMAGED = (OSError, ValueError, KeyError, EOFError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error,
           tokenize.TokenError)  # fmt: skip
ABANDONED_AFTER = 120.0  # seconds without a sign of life; a write takes less, a claim is touched more often


@dataclass(frozen=True)
class Scan:
    """What lies in a results folder: records by key, and why each unreadable file is one."""

    records: dict[str, Record]
    corrupt: dict[Path, str]


class Store:
    """A results folder OUT; see slimbench.runs.record for the files in it."""

    def __init__(self, out: Path | str) -> None:
        self.out = Path(out)

    def path(self, key: str) -> Path:
        """Where the record of the cell `key` lies."""
        return self.out / RECORDS / f"{key}.json"

    def prepare(self) -> None:
        """Create the folders, see that they can be written, and clear away what a killed process left.

        Raises RecordError now rather than after the first hour of training.
        """
        for folder in (RECORDS, PREDICTIONS, KEPT, MODELS, CLAIMS, LOGS):
            probe = self.out / folder / f".probe.{os.getpid()}.{secrets.token_hex(4)}.tmp"
            try:
                probe.parent.mkdir(parents=True, exist_ok=True)
                probe.write_bytes(b"x")
                now = probe.stat().st_mtime  # the clock of the machine that holds the folder
                probe.unlink()
                for leftover in probe.parent.glob(".*.tmp"):
                    if _abandoned(leftover, now):
                        leftover.unlink(missing_ok=True)
            except OSError as error:
                raise _unwritable(probe.parent, error) from error

    def read(self, key: str) -> Record | None:
        """The record of a cell, None where there is none that can be read."""
        scan = self.scan([self.path(key)])
        return scan.records.get(key)

    def scan(self, paths: Iterable[Path] | None = None) -> Scan:
        """All records (or those at `paths`). RecordError only for a record of a newer slimbench."""
        records: dict[str, Record] = {}
        corrupt: dict[Path, str] = {}
        found = (self.out / RECORDS).glob("*.json") if paths is None else paths
        for path in sorted(found):
            if path.name.startswith(".") or ".conflict-" in path.name:
                continue
            try:
                records[path.stem] = _parse(path)
            except FileNotFoundError:
                continue
            except (OSError, ValueError) as error:
                corrupt[path] = _short(error)
        return Scan(records, corrupt)

    def write_record(self, record: Record, before: Record | None = None) -> Record:
        """Put a record on the disk, whole, and hand back the one that now stands there.

        It takes the place of `before` and of a file that cannot be read. Anything else was written by a
        process that was first (which takes a lost claim): that one stands, and ours is kept beside it as
        `<key>.conflict-<hex>.json`.
        """
        data = record.model_dump_json(indent=1).encode()
        Record.model_validate_json(data)
        path = self.path(record.key)
        if write_whole(path, data, replace=False):
            return record
        there = self.read(record.key)
        if there is None or there == before:
            write_whole(path, data, replace=True)
            return record
        write_whole(path.with_suffix(f".conflict-{secrets.token_hex(4)}.json"), data, replace=False)
        return there

    def trained(self, training_key: str) -> Training | None:
        """How the weights at `weights(training_key)` were trained; None if they have to be trained first."""
        try:
            facts = Training.model_validate_json(self._facts(training_key).read_bytes())
        except (OSError, ValueError):
            return None
        current = facts.source == source_hash() and self.weights(training_key).exists()
        return facts if current else None

    def weights(self, training_key: str) -> Path:
        """Where the weights of a training lie, as safetensors."""
        return self.out / MODELS / f"{training_key}.safetensors"

    def write_training(self, training_key: str, weights: bytes, training: Training) -> None:
        """Keep trained weights (safetensors) and how they came about."""
        self.forget_training(training_key)  # what stood there must not vouch for other weights
        write_whole(self.weights(training_key), weights, replace=True)
        write_whole(self._facts(training_key), training.model_dump_json().encode(), replace=True)

    def forget_training(self, training_key: str) -> None:
        """Have the weights trained again."""
        self._facts(training_key).unlink(missing_ok=True)

    def _facts(self, training_key: str) -> Path:
        """Written after the weights: that it is there says that they are whole."""
        return self.weights(training_key).with_suffix(".json")

    def write_predictions(self, key: str, task: str, frame: pd.DataFrame) -> str:
        """Predictions of one task of a cell as Parquet; the path relative to OUT, for the record."""
        buffer = io.BytesIO()
        frame.to_parquet(buffer, index=False)
        path = self.out / PREDICTIONS / f"{key}.{_file_part(task)}.parquet"
        write_whole(path, buffer.getvalue(), replace=True)
        return str(path.relative_to(self.out))

    def write_kept_sets(self, key: str, left: Mapping[str, NDArray[np.uint8]]) -> None:
        """Keep {slide id: Trace.left [P] uint8} of a cell's test slides.

        A patch that has left never comes back, except by last-layer fusion, which kept sets leave out; so its one
        number says all of a slide's layers, where bitmaps would say each again. Deflated, a slide of 17,182
        patches takes 7 KB at rates 0.5 and 0.9.
        """
        import numpy as np

        buffer = io.BytesIO()
        np.savez_compressed(
            buffer,
            slides=np.array(list(left), dtype=np.str_),
            patches=np.array([len(each) for each in left.values()], dtype=np.int64),
            left=np.concatenate([*left.values(), np.empty(0, np.uint8)]),
        )
        write_whole(self._kept(key), buffer.getvalue(), replace=True)

    def kept_sets(self, key: str) -> dict[str, NDArray[np.uint8]]:
        """{slide id: Trace.left [P] uint8} of a cell's test slides; {} where the cell left none.

        Raises RecordError for a file that cannot be read.
        """
        import numpy as np

        path = self._kept(key)
        try:
            with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
                ends = file["patches"].cumsum()[:-1]
                return dict(zip(file["slides"].tolist(), np.split(file["left"], ends), strict=True))
        except FileNotFoundError:
            return {}
        except DAMAGED as error:
            raise RecordError(
                f"{path} holds no kept sets: {_short(error)}; delete {self.path(key)} and run the sweep again, "
                "which makes both anew"
            ) from error

    def _kept(self, key: str) -> Path:
        return self.out / KEPT / f"{key}.npz"


def write_whole(path: Path, data: bytes, *, replace: bool) -> bool:
    """Write `data` so that a reader sees all of it or nothing, also after a crash.

    replace  take the place of a file that is there; otherwise the first writer wins and False is returned

    Raises RecordError that names the path when the disk is full, read-only or over its quota.
    """
    temporary = temporary_beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if replace or not _has_links(temporary, path):
            os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except FileExistsError:
        return False
    except OSError as error:
        raise _unwritable(path, error, len(data)) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return True


def _has_links(temporary: Path, path: Path) -> bool:
    """Give the file its name unless the name is taken (FileExistsError); False where a file system has
    no hard links, and then the claim on the cell is what keeps a second writer away."""
    try:
        os.link(temporary, path)
    except OSError as error:
        if error.errno in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
            if path.exists():
                raise FileExistsError(path) from None
            return False
        raise
    return True


def _parse(path: Path) -> Record:
    """The record in `path`; ValueError or OSError say why there is none."""
    data = path.read_bytes()
    version = json.loads(data).get("schema_version") if data[:1] == b"{" else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise RecordError(
            f"{path} has schema_version {version}, this slimbench reads {SCHEMA_VERSION}; "
            "update slimbench or choose another --out"
        )
    record = Record.model_validate_json(data)
    if record.key != path.stem:
        raise ValueError(f"it holds the record of cell {record.key}")
    return record


def _short(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc'])) or 'JSON'}: {first['msg']}"
    return str(error)


def _file_part(task: str) -> str:
    """A task's spec as part of a file name: itself if it is a plain name, else a slug with a hash."""
    if re.fullmatch(r"[a-z0-9-]{1,60}", task):
        return task
    slug = re.sub(r"[^a-z0-9]+", "-", task.lower()).strip("-")[:40]
    return f"{slug}-{hashlib.sha256(task.encode()).hexdigest()[:8]}"


def _abandoned(temporary: Path, now: float) -> bool:
    """Whether the writer of a temporary file is gone: its process, named in the file, and for a while."""
    match = re.search(r"\.(\d+)\.[0-9a-f]{8}\.tmp$", temporary.name)
    if match is None or now - temporary.stat().st_mtime < ABANDONED_AFTER:
        return False
    try:
        os.kill(int(match[1]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _unwritable(path: Path, error: OSError, size: int | None = None) -> RecordError:
    needed = f"; {size} bytes are needed" if size is not None and error.errno != errno.EROFS else ""
    return RecordError(
        f"{path} cannot be written: {error.strerror or error}{needed}. Free space there or choose another "
        "--out; finished cells are kept and the same command goes on from them"
    )
