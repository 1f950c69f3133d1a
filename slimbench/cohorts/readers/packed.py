"""What `slimbench data pack` writes: `<slide>.safetensors`, read in one go and checked by its CRC-32.

Tensors `features` [N, D] float16 (where that loses nothing) or float32 and, optionally, `coords` [N, 2]
float32 in grid units; the metadata hold the checksum, the kind of patches and the digest of the source.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from slimbench.cohorts.cohort import Patches
from slimbench.cohorts.readers.file import FeatureFile, Head, head_of, sample_rows
from slimbench.errors import CohortError


class PackedFile(FeatureFile):
    """One repacked slide."""

    format = "packed"
    suffixes = (".safetensors",)

    @classmethod
    def detect(cls, path: Path) -> bool:
        return "crc32" in cls(path).metadata()

    def read(self, slide_id: str) -> Patches:
        try:
            with safe_open(self.path, framework="np") as file:
                metadata, names = file.metadata() or {}, file.keys()
                features = file.get_tensor("features")
                coords = file.get_tensor("coords") if "coords" in names else None
        except (OSError, SafetensorError) as error:
            raise self._damaged(error) from None
        if metadata.get("crc32") != checksum(features, coords):
            raise self._damaged("its checksum differs")
        return Patches(features.astype(np.float32), coords)

    def head(self, slide_id: str) -> Head:
        try:
            with safe_open(self.path, framework="np") as file:
                features = file.get_slice("features")
                n, dim = features.get_shape()
                rows = sample_rows(n)
                picked = [features[row : row + 1] for row in rows]
                sample = np.concatenate(picked) if picked else np.empty((0, dim), np.float32)
                coords = file.get_tensor("coords")[rows] if "coords" in file.keys() else None  # noqa: SIM118
                kind = (file.metadata() or {}).get("kind", "")
        except (OSError, SafetensorError) as error:
            raise self._damaged(error) from None
        return Head(n, dim, kind, Patches(sample.astype(np.float32), coords))

    def metadata(self) -> dict[str, str]:
        """The strings beside the tensors; CohortError for a file that cannot be read."""
        try:
            with safe_open(self.path, framework="np") as file:
                return file.metadata() or {}
        except (OSError, SafetensorError) as error:
            raise self._damaged(error) from None

    def _damaged(self, reason: object) -> CohortError:
        return CohortError(
            f"{self.path}: damaged packed file ({reason}); delete it and run `slimbench data pack` again"
        )


def write_packed(path: Path, patches: Patches, kind: str) -> None:
    """Write one slide; `path` is written directly, see `files.replacing`."""
    with np.errstate(over="ignore"):
        half = patches.features.astype(np.float16)
    features = half if np.array_equal(half.astype(np.float32), patches.features) else patches.features
    arrays: dict[str, NDArray[Any]] = {"features": np.ascontiguousarray(features)}
    if patches.coords is not None:
        arrays["coords"] = np.ascontiguousarray(patches.coords)
    metadata = {
        "crc32": checksum(arrays["features"], arrays.get("coords")),
        "kind": kind,
        "digest": head_of(patches).digest,
    }
    save_file(arrays, path, metadata)


def checksum(features: NDArray[Any], coords: NDArray[Any] | None) -> str:
    """CRC-32 of the arrays' bytes, in hexadecimal."""
    value = zlib.crc32(np.ascontiguousarray(features).data)
    return f"{value if coords is None else zlib.crc32(np.ascontiguousarray(coords).data, value):08x}"
