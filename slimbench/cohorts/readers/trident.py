"""TRIDENT (github.com/mahmoodlab/TRIDENT): `<mag>x_<patch>px_<overlap>px_overlap/features_<encoder>/<slide>.h5`.

Patch features: dataset `features` (N, D), any float, with `coords` (N, 2) int64, (x, y) in level-0
pixels, whose attribute `patch_size_level0` (it differs between slides) makes them grid units.
Slide features (`slide_features_<encoder>/`): `features` (D,), one row without coordinates.
"""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from slimbench.cohorts.cohort import Patches
from slimbench.cohorts.readers.file import FeatureFile, Head, as_rows, checked_coords, sample_rows
from slimbench.cohorts.readers.hdf5 import SUFFIXES, dataset, opened, required, rows_of, text_attribute
from slimbench.errors import CohortError


class TridentFile(FeatureFile):
    """One slide as TRIDENT writes it."""

    format = "trident"
    suffixes = SUFFIXES

    @classmethod
    def detect(cls, path: Path) -> bool:
        with opened(path) as file:
            features, coords = dataset(file, "features", path), dataset(file, "coords", path)
            if features is None:
                return False
            return features.ndim == 1 or (coords is not None and "patch_size_level0" in coords.attrs)

    def read(self, slide_id: str) -> Patches:
        with opened(self.path) as file:
            stored = required(file, "features", self.path)
            features = as_rows(stored[()], self.path)
            coords = None if stored.ndim == 1 else dataset(file, "coords", self.path)
            if coords is None:
                return Patches(features)
            return Patches(features, checked_coords(coords[()], self._edge(coords), len(features), self.path))

    def head(self, slide_id: str) -> Head:
        with opened(self.path) as file:
            stored = required(file, "features", self.path)
            n, dim, rows = rows_of(stored, self.path)
            features = as_rows(rows, self.path)
            coords = None if stored.ndim == 1 else dataset(file, "coords", self.path)
            if coords is None:
                return Head(n, dim, "", Patches(features))
            if coords.shape != (n, 2):
                checked_coords(np.empty(coords.shape), 1, n, self.path)
            chosen = coords[sample_rows(n)] if n else coords[()]
            sample = checked_coords(chosen, self._edge(coords), len(features), self.path)
            return Head(n, dim, _kind(stored, coords), Patches(features, sample))

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


def _kind(features: h5py.Dataset, coords: h5py.Dataset) -> str:
    """ "20x 512px overlap 0 conch_v15": what has to be equal in one cohort."""
    magnification, patch, overlap = (
        text_attribute(coords, name) for name in ("target_magnification", "patch_size", "overlap")
    )
    return f"{magnification}x {patch}px overlap {overlap} {text_attribute(features, 'encoder')}".strip()
