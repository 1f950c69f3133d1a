"""A packed npz: many slides in one file, for bags of a few hundred rows.

    features  [T, D]   any float; T rows of all slides
    offsets   [S + 1]  slide i has rows offsets[i] to offsets[i + 1]
    slide_id  [S]      text
    coords    [T, 2]   grid units (x, y), optional

Features are loaded once, at the first read, and kept in the type they have in the file.
"""

from __future__ import annotations

import zipfile
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slimbench.cohorts.cohort import Patches
from slimbench.cohorts.readers.file import FeatureFile, as_rows, check_size
from slimbench.errors import CohortError

_NEEDED = ("features", "offsets", "slide_id")


class NpzFile(FeatureFile):
    """All slides of one npz."""

    format = "npz"
    suffixes = (".npz",)

    @classmethod
    def detect(cls, path: Path) -> bool:
        return True

    def slides(self) -> tuple[str, ...]:
        return tuple(self._rows)

    def read(self, slide_id: str) -> Patches:
        rows = self._rows[slide_id]
        coords = self._coords
        features = as_rows(self._features[rows], self.path)
        return Patches(features, None if coords is None else coords[rows].astype(np.float32))

    @cached_property
    def _rows(self) -> dict[str, slice]:
        """Rows of each slide, in the file's order."""
        offsets, names = self._array("offsets"), [str(name) for name in self._array("slide_id")]
        if offsets.shape != (len(names) + 1,) or offsets.dtype.kind not in "iu":
            raise CohortError(
                f"{self.path}: {len(names)} slide ids and offsets {offsets.dtype} {offsets.shape}; "
                f"expected whole numbers ({len(names) + 1},)"
            )
        if offsets[0] != 0 or (np.diff(offsets) < 0).any():
            raise CohortError(f"{self.path}: offsets must start at 0 and never fall; pack the file again")
        rows: dict[str, slice] = {}
        for name, start, stop in zip(names, offsets[:-1], offsets[1:], strict=True):
            if name in rows:
                raise CohortError(f"{self.path}: slide {name} is in it twice; remove one")
            rows[name] = slice(int(start), int(stop))
        return rows

    @cached_property
    def _features(self) -> NDArray[Any]:
        features = self._array("features")
        total = next(reversed(self._rows.values())).stop if self._rows else 0
        if features.ndim != 2 or len(features) != total:
            raise CohortError(f"{self.path}: features have shape {features.shape}, expected ({total}, D)")
        return features

    @cached_property
    def _coords(self) -> NDArray[Any] | None:
        coords = self._array("coords") if "coords" in self._names else None
        if coords is not None and coords.shape != (len(self._features), 2):
            raise CohortError(
                f"{self.path}: coords have shape {coords.shape}, expected ({len(self._features)}, 2)"
            )
        return coords

    @cached_property
    def _names(self) -> tuple[str, ...]:
        """The arrays in the file, none of which claims more than a thousand times its size."""
        try:
            with zipfile.ZipFile(self.path) as archive:
                check_size(sum(member.file_size for member in archive.infolist()), self.path)
                names = tuple(member.filename.removesuffix(".npy") for member in archive.infolist())
        except (OSError, zipfile.BadZipFile) as error:
            raise CohortError(f"{self.path}: not a readable npz file ({error})") from None
        missing = [name for name in _NEEDED if name not in names]
        if missing:
            raise CohortError(f"{self.path}: no array {missing[0]!r}, it has {', '.join(names)}")
        return names

    def _array(self, name: str) -> NDArray[Any]:
        assert name in self._names
        try:
            with np.load(self.path, allow_pickle=False) as file:
                array: NDArray[Any] = file[name]
        except (OSError, ValueError, EOFError, KeyError, MemoryError, zipfile.BadZipFile) as error:
            raise CohortError(
                f"{self.path}: array {name!r} cannot be read ({error}); copy the file again"
            ) from None
        return array
