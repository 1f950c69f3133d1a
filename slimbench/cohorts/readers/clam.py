"""CLAM and Prov-GigaPath: `<slide>.h5` with `features` (N, D) or (1, N, D) and `coords` (N, 2) in level-0 pixels.

Where `coords` has CLAM's attributes, patch_size times the level's downsample is the patch's edge and the grid
unit; the feature files often lack them, and then the unit is the commonest step between patches, which is not
their edge where they overlap or leave gaps.
"""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from slimbench.cohorts.readers.file import checked_coords, grid_step
from slimbench.cohorts.readers.hdf5 import Hdf5File, dataset, opened, required


class ClamFile(Hdf5File):
    """One slide as CLAM or Prov-GigaPath's scripts write it."""

    format = "clam"

    @classmethod
    def detect(cls, path: Path) -> bool:
        with opened(path) as file:
            return dataset(file, "features", path) is not None

    def grid(self, file: h5py.File, n: int, rows: list[int] | None) -> NDArray[np.float32] | None:
        stored = dataset(file, "coords", self.path)
        if stored is None:
            return None
        coords = np.asarray(stored[()]).reshape(-1, 2)
        grid = checked_coords(coords, _edge(stored) or grid_step(coords), n, self.path)
        return grid if rows is None else grid[rows]

    def patch_size(self, file: h5py.File) -> float | None:
        return _edge(required(file, "coords", self.path))


def _edge(coords: h5py.Dataset) -> float | None:
    """patch_size times downsample where CLAM's own attributes state them."""
    patch = coords.attrs.get("patch_size")
    downsample = coords.attrs.get("custom_downsample", coords.attrs.get("downsample"))
    if patch is not None and downsample is not None:
        edge = float(np.ravel(patch)[0]) * float(np.ravel(downsample)[0])
        if edge > 0:
            return edge
    return None
