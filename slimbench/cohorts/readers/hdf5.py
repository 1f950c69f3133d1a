"""What the HDF5 formats share, and the opening of strangers' files: read-only, without locks, and
nothing that points elsewhere."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import h5py
import numpy as np
from numpy.typing import NDArray

from slimbench.cohorts.cohort import Patches
from slimbench.cohorts.readers.file import FeatureFile, Head, as_rows, check_size, row_shape, sample_rows
from slimbench.errors import CohortError

SUFFIXES = (".h5", ".hdf5")


class Hdf5File(FeatureFile):
    """One slide in an HDF5 file: a format says where its coordinates are and what they mean."""

    suffixes = SUFFIXES
    features: ClassVar[str] = "features"

    @abstractmethod
    def grid(self, file: h5py.File, n: int, rows: list[int] | None) -> NDArray[np.float32] | None:
        """Grid coordinates of `rows` (None: all) of the n patches, or None where the file has none."""

    def patch_size(self, file: h5py.File) -> float | None:
        """A patch's edge in level-0 pixels, or None (see `Patches.patch_size`)."""
        return None

    def kind(self, file: h5py.File) -> str:
        """How the patches were made, as far as the file says it (see `Head.kind`)."""
        return ""

    def current(self, file: h5py.File) -> bool:
        """See `Head.current`."""
        return True

    def read(self, slide_id: str) -> Patches:
        with opened(self.path) as file:
            features = as_rows(required(file, self.features, self.path)[()], self.path)
            grid = self.grid(file, len(features), None)
            return Patches(features, grid, patch_size=None if grid is None else self.patch_size(file))

    def head(self, slide_id: str) -> Head:
        with opened(self.path) as file:
            stored = required(file, self.features, self.path)
            n, dim = row_shape(stored.shape, self.path)
            rows = sample_rows(n)
            if stored.ndim == 1 or not rows:
                picked = np.asarray(stored[()]).reshape(n, dim)
            else:
                picked = stored[0, rows] if stored.ndim == 3 else stored[rows]
            sample = Patches(as_rows(picked, self.path).reshape(len(rows), dim), self.grid(file, n, rows))
            return Head(n, dim, self.kind(file), sample, self.current(file))

    def picked(self, coords: h5py.Dataset, n: int, rows: list[int] | None) -> NDArray[Any]:
        """Rows of stored coordinates [n, 2]; CohortError if they are not one for each patch."""
        if coords.shape != (n, 2):
            raise CohortError(
                f"{self.path}: {n} rows of features and coordinates of shape {coords.shape}; expected ({n}, 2); "
                "extract this slide again"
            )
        picked: NDArray[Any] = coords[rows] if rows else coords[()]
        return picked


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


def text_attribute(holder: h5py.Dataset | h5py.File, name: str) -> str:
    """An attribute as text; "" for a missing one and for TRIDENT's 'None'."""
    value = holder.attrs.get(name, "")
    text = value.decode() if isinstance(value, bytes) else str(value)
    return "" if text == "None" else text
