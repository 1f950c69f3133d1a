"""Opening HDF5 files of strangers: read-only, without locks, and nothing that points elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from slimbench.cohorts.readers.file import check_size, row_shape, sample_rows
from slimbench.errors import CohortError

SUFFIXES = (".h5", ".hdf5")


@contextmanager
def opened(path: Path) -> Iterator[h5py.File]:
    """The file at `path`; whatever HDF5 finds wrong, now or during the reads, is a CohortError."""
    try:
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except OSError as error:
        if not path.is_file():
            raise CohortError(f"no feature file {path}") from None
        reason = " ".join(str(error).split())
        raise CohortError(f"{path}: damaged HDF5 file ({reason}); extract or copy this slide again") from None


def dataset(file: h5py.File, name: str, path: Path) -> h5py.Dataset | None:
    """The dataset called `name`, or None. One that lies in another file, is virtual, or claims
    a thousand times the size of its file is refused."""
    link = file.get(name, getlink=True)
    if link is None:
        return None
    if not isinstance(link, h5py.HardLink):
        raise CohortError(f"{path}: {name!r} is a link to another place; not read")
    found = file[name]
    if not isinstance(found, h5py.Dataset) or found.shape is None:
        raise CohortError(f"{path}: {name!r} is no array")
    if found.external or found.is_virtual:
        raise CohortError(f"{path}: {name!r} lies in other files; not read")
    check_size(found.size * found.dtype.itemsize, path)
    return found


def required(file: h5py.File, name: str, path: Path) -> h5py.Dataset:
    """The dataset called `name`; CohortError if there is none."""
    found = dataset(file, name, path)
    if found is None:
        raise CohortError(f"{path}: no dataset {name!r}, it has {', '.join(sorted(file)) or 'none'}")
    return found


def rows_of(stored: h5py.Dataset, path: Path) -> tuple[int, int, NDArray[Any]]:
    """N, D and the rows `sample_rows(N)` of stored features, without reading the others."""
    n, dim = row_shape(stored.shape, path)
    rows = sample_rows(n)
    if stored.ndim == 1 or not rows:
        return n, dim, np.asarray(stored[()]).reshape(n, dim)
    return n, dim, stored[0, rows] if stored.ndim == 3 else stored[rows]


def text_attribute(holder: h5py.Dataset | h5py.File, name: str) -> str:
    """An attribute as text; "" for a missing one and for TRIDENT's 'None'."""
    value = holder.attrs.get(name, "")
    text = value.decode() if isinstance(value, bytes) else str(value)
    return "" if text == "None" else text
