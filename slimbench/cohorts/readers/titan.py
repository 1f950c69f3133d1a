"""TITAN's pickled slide features: {"embeddings": [S, D], "filenames": [S]}, one row per slide.

A pickle is a program. This one may call the eight functions that build numpy arrays and nothing else,
and those only with the arguments that arrays are stored with.
"""

from __future__ import annotations

import codecs
import pickle
from collections import OrderedDict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slimbench.cohorts.cohort import Patches
from slimbench.cohorts.readers.file import FeatureFile, as_rows
from slimbench.errors import CohortError

LARGEST = 8 * 2**30


class TitanFile(FeatureFile):
    """All slides of one pickle."""

    format = "titan"
    suffixes = (".pkl", ".pickle")

    @classmethod
    def detect(cls, path: Path) -> bool:
        return True

    def slides(self) -> tuple[str, ...]:
        return tuple(self._rows)

    def read(self, slide_id: str) -> Patches:
        return Patches(as_rows(self._rows[slide_id], self.path))

    @cached_property
    def _rows(self) -> dict[str, NDArray[Any]]:
        content = _load(self.path)
        if not isinstance(content, dict) or not {"embeddings", "filenames"} <= content.keys():
            raise CohortError(f"{self.path}: expected a dictionary with `embeddings` and `filenames`")
        rows, names = np.asarray(content["embeddings"]), [str(name) for name in content["filenames"]]
        if rows.ndim != 2 or len(rows) != len(names):
            raise CohortError(f"{self.path}: {len(names)} filenames and embeddings of shape {rows.shape}")
        if len(set(names)) != len(names):
            twice = next(name for row, name in enumerate(names) if name in names[:row])
            raise CohortError(f"{self.path}: slide {twice} is in it twice; remove one")
        return dict(zip(names, rows, strict=True))


def _load(path: Path) -> Any:
    try:
        if path.stat().st_size > LARGEST:
            raise CohortError(
                f"{path}: a pickle of more than {LARGEST >> 30} GiB is not read; save it as npz"
            )
        with path.open("rb") as file:
            return _ArraysOnly(file).load()
    except OSError as error:
        raise CohortError(f"no feature file {path} ({error.strerror})") from None
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, KeyError, IndexError,
            OverflowError, MemoryError) as error:  # fmt: skip
        raise CohortError(f"{path}: not a pickle of plain arrays ({error}); not loaded") from None


def _bytearray(data: bytes = b"") -> bytearray:
    """A bytearray of bytes; a number would reserve that much memory."""
    if not isinstance(data, bytes):
        raise pickle.UnpicklingError("bytearray of something else than bytes")
    return bytearray(data)


def _array(kind: type, shape: tuple[int, ...], code: bytes) -> NDArray[Any]:
    """The empty array that a pickled one starts as; another shape would reserve memory."""
    if kind is not np.ndarray or shape != (0,):
        raise pickle.UnpicklingError("an array that does not start empty")
    return np.ndarray((0,), "b")


def _encode(text: str, encoding: str) -> bytes:
    """Bytes as protocols 0 to 2 store them: Latin-1 text."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"text encoded as {encoding!r}")
    return codecs.latin_1_encode(text)[0]


_scalar = np.float32(0).__reduce__()[0]
_frombuffer = np.arange(3).__reduce_ex__(5)[0]
_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _encode,
    ("collections", "OrderedDict"): OrderedDict,
    ("builtins", "bytearray"): _bytearray,
    ("__builtin__", "bytearray"): _bytearray,
} | {
    (f"numpy.{core}.{module}", name): function
    for core in ("core", "_core")
    for module, name, function in (
        ("multiarray", "_reconstruct", _array),
        ("multiarray", "scalar", _scalar),
        ("numeric", "_frombuffer", _frombuffer),
    )
}


class _ArraysOnly(pickle.Unpickler):
    """An unpickler that finds the functions in _ALLOWED, by their whole names, and no others."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it wants to call {module}.{name}")
        return _ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it points to another object")
