"""TRIDENT (github.com/mahmoodlab/TRIDENT): `<mag>x_<patch>px_<overlap>px_overlap/features_<encoder>/<slide>.h5`.

Patch features: dataset `features` (N, D), any float, with `coords` (N, 2) int64, (x, y) in level-0
pixels, whose attribute `patch_size_level0` (it differs between slides) makes them grid units.
Slide features (`slide_features_<encoder>/`): `features` (D,), one row without coordinates.
"""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from slimbench.cohorts.readers.hdf5 import Hdf5File, dataset, opened, required, text_attribute
from slimbench.errors import CohortError


class TridentFile(Hdf5File):
    """One slide as TRIDENT writes it."""

    format = "trident"

    @classmethod
    def detect(cls, path: Path) -> bool:
        with opened(path) as file:
            features, coords = dataset(file, "features", path), dataset(file, "coords", path)
            if features is None:
                return False
            return features.ndim == 1 or (coords is not None and "patch_size_level0" in coords.attrs)

    def grid(self, file: h5py.File, n: int, rows: list[int] | None) -> NDArray[np.float32] | None:
        coords = dataset(file, "coords", self.path)
        if coords is None or required(file, "features", self.path).ndim == 1:
            return None
        return (self.picked(coords, n, rows) / self._edge(coords)).astype(np.float32)

    def patch_size(self, file: h5py.File) -> float:
        return self._edge(required(file, "coords", self.path))

    def kind(self, file: h5py.File) -> str:
        """As in "20x 512px overlap 0 conch_v15"."""
        encoder = text_attribute(file["features"], "encoder")
        coords = dataset(file, "coords", self.path)
        if coords is None:
            return encoder
        names = ("target_magnification", "patch_size", "overlap")
        magnification, patch, overlap = (text_attribute(coords, name) for name in names)
        return f"{magnification}x {patch}px overlap {overlap} {encoder}".strip()

    def _edge(self, coords: h5py.Dataset) -> float:
        text = text_attribute(coords, "patch_size_level0")
        try:
            edge = float(text)
        except ValueError:
            edge = 0.0
        if not edge > 0:
            raise CohortError(
                f"{self.path}: attribute patch_size_level0 of `coords` is {text!r}, expected pixels; "
                'extract this slide again, or state format = "clam" to have it estimated'
            )
        return edge
