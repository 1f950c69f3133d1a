"""STAMP (github.com/KatherLab/STAMP): `feats` (N, D) and `coords` (N, 2) in micrometres.

The file's attribute `tile_size_um` is the patch's edge; slide features (`feat_type` "slide" or
"patient") are `feats` (D,) or (1, D) without coordinates.
"""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from slimbench.cohorts.readers.hdf5 import Hdf5File, dataset, opened, text_attribute
from slimbench.errors import CohortError


class StampFile(Hdf5File):
    """One slide (or patient) as STAMP writes it."""

    format = "stamp"
    features = "feats"

    @classmethod
    def detect(cls, path: Path) -> bool:
        with opened(path) as file:
            return dataset(file, "feats", path) is not None

    def grid(self, file: h5py.File, n: int, rows: list[int] | None) -> NDArray[np.float32] | None:
        coords = dataset(file, "coords", self.path)
        if coords is None or text_attribute(file, "feat_type") in ("slide", "patient"):
            return None
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
        return (self.picked(coords, n, rows) / step).astype(np.float32)

    def kind(self, file: h5py.File) -> str:
        """As in "256.0um virchow2"."""
        return f"{text_attribute(file, 'tile_size_um')}um {text_attribute(file, 'extractor')}".strip()
