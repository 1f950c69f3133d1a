"""What `slimbench data pack` writes: one HDF5 file a slide, contiguous, read in one go and checked by its sum.

Datasets `features` [N, D] float16 (where that loses nothing) or float32 and, optionally, `coords` [N, 2]
float32 in grid units; the file's attributes are the format number, the checksum, the kind of patches and, where
the source says it, their edge in level-0 pixels.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from slimbench.cohorts.cohort import Patches
from slimbench.cohorts.readers.file import as_rows
from slimbench.cohorts.readers.hdf5 import Hdf5File, dataset, opened, required, text_attribute
from slimbench.errors import CohortError

FORMAT = 2  # raised with what a copy holds of its source; copies before 2 have no number and no patch size
_WORDS = 512


class PackedFile(Hdf5File):
    """One repacked slide."""

    format = "packed"

    @classmethod
    def detect(cls, path: Path) -> bool:
        with opened(path) as file:
            return "slimbench_checksum" in file.attrs

    def grid(self, file: h5py.File, n: int, rows: list[int] | None) -> NDArray[np.float32] | None:
        coords = dataset(file, "coords", self.path)
        return None if coords is None else self.picked(coords, n, rows)

    def patch_size(self, file: h5py.File) -> float | None:
        """The source's."""
        written = file.attrs.get("patch_size")
        return None if written is None else float(written)

    def kind(self, file: h5py.File) -> str:
        """The source's."""
        return text_attribute(file, "kind")

    def current(self, file: h5py.File) -> bool:
        return bool(file.attrs.get("slimbench_format") == FORMAT)

    def read(self, slide_id: str) -> Patches:
        with opened(self.path) as file:
            features = required(file, "features", self.path)[()]
            coords = self.grid(file, len(features), None)
            written, patch_size = text_attribute(file, "slimbench_checksum"), self.patch_size(file)
        if written != checksum(features, coords):
            raise CohortError(
                f"{self.path}: damaged packed file (its checksum differs); delete it and run "
                "`slimbench data pack` again"
            )
        return Patches(as_rows(features, self.path), coords, patch_size=patch_size)


def write_packed(path: Path, patches: Patches, kind: str) -> None:
    """Write one slide; `path` is written directly, see `files.replacing`."""
    with np.errstate(over="ignore"):
        half = patches.features.astype(np.float16)
    features = half if np.array_equal(half.astype(np.float32), patches.features) else patches.features
    with h5py.File(path, "w") as file:
        file.create_dataset("features", data=features)
        if patches.coords is not None:
            file.create_dataset("coords", data=patches.coords)
        written = {"slimbench_checksum": checksum(features, patches.coords), "slimbench_format": FORMAT}
        file.attrs.update(written | {"kind": kind})
        if patches.patch_size is not None:
            file.attrs["patch_size"] = patches.patch_size


def checksum(features: NDArray[Any], coords: NDArray[Any] | None) -> str:
    """CRC-32 of the 64-bit sums of each 4 KiB of the arrays: ten times faster than the CRC of every byte,
    and no flipped bit or misplaced block goes unseen."""
    value = zlib.crc32(_block_sums(features))
    return f"{value if coords is None else zlib.crc32(_block_sums(coords), value):08x}"


def _block_sums(array: NDArray[Any]) -> bytes:
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    whole = len(flat) // (8 * _WORDS) * (8 * _WORDS)
    sums = flat[:whole].view("<u8").reshape(-1, _WORDS).sum(axis=1, dtype="<u8")
    return sums.tobytes() + flat[whole:].tobytes()
