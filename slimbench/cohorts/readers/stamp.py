"""STAMP (github.com/KatherLab/STAMP): `feats` (N, D) and `coords` (N, 2) in micrometres.

The file's attribute `tile_size_um` is the patch's edge; slide features (`feat_type` "slide" or
"patient") are `feats` (D,) or (1, D) without coordinates.
"""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from slimbench.cohorts.cohort import Patches
from slimbench.cohorts.readers.file import FeatureFile, Head, as_rows, checked_coords, head_of
from slimbench.cohorts.readers.hdf5 import SUFFIXES, dataset, opened, required, text_attribute
from slimbench.errors import CohortError


class StampFile(FeatureFile):
    """One slide (or patient) as STAMP writes it."""

    format = "stamp"
    suffixes = SUFFIXES

    @classmethod
    def detect(cls, path: Path) -> bool:
        with opened(path) as file:
            return dataset(file, "feats", path) is not None

    def read(self, slide_id: str) -> Patches:
        with opened(self.path) as file:
            return self._read(file)

    def head(self, slide_id: str) -> Head:
        with opened(self.path) as file:
            edge, extractor = text_attribute(file, "tile_size_um"), text_attribute(file, "extractor")
            return head_of(self._read(file), f"{edge}um {extractor}".strip())

    def _read(self, file: h5py.File) -> Patches:
        features = as_rows(required(file, "feats", self.path)[()], self.path)
        coords = dataset(file, "coords", self.path)
        if coords is None or text_attribute(file, "feat_type") in ("slide", "patient"):
            return Patches(features)
        return Patches(features, self._grid(file, coords[()], len(features)))

    def _grid(self, file: h5py.File, coords: NDArray[np.float64], n: int) -> NDArray[np.float32]:
        unit, edge = text_attribute(file, "unit"), text_attribute(file, "tile_size_um")
        try:
            step = float(edge)
        except ValueError:
            step = 0.0
        if unit not in ("um", "") or not step > 0:
            raise CohortError(
                f"{self.path}: coordinates in {unit or 'no unit'} with tile_size_um = {edge or 'nothing'}; "
                'expected unit "um" and an edge above 0; extract this slide with a newer STAMP'
            )
        return checked_coords(coords, step, n, self.path)
