"""What a feature file is: the interface that each format implements, and the checks they share."""

from __future__ import annotations

import hashlib
import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from slimbench.cohorts.cohort import Patches
from slimbench.errors import CohortError


@dataclass(frozen=True)
class Head:
    """What a file says of a slide before its features are read.

    patches, dim  N and D
    kind          how the patches were made, as far as the file says it: "20x 512px overlap 0 conch_v15"
    sample        the rows `sample_rows(N)` of features and coordinates
    current       False for a packed file of another format number than `data pack` writes today
    """

    patches: int
    dim: int
    kind: str
    sample: Patches
    current: bool = True

    @property
    def digest(self) -> str:
        """16 hex digits of size and sample: the same for the same features in another format or place."""
        hashed = hashlib.sha256(f"{self.patches},{self.dim}".encode())
        hashed.update(np.ascontiguousarray(self.sample.features, dtype="<f4").tobytes())
        if self.sample.coords is not None:
            hashed.update(np.ascontiguousarray(self.sample.coords, dtype="<f4").tobytes())
        return hashed.hexdigest()[:16]


class FeatureFile(ABC):
    """One file of features, opened anew for each read.

    format    the name a cohort file uses
    suffixes  of its files
    """

    format: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]]

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    @abstractmethod
    def detect(cls, path: Path) -> bool:
        """Whether the file, which has one of the suffixes, is of this format."""

    def slides(self) -> tuple[str, ...]:
        """Ids of the slides in it; by default one, called like the file."""
        return (self.path.stem,)

    @abstractmethod
    def read(self, slide_id: str) -> Patches:
        """Features [N, D] float32 and grid coordinates of one slide, N may be 0.

        Raises CohortError naming the file and what is wrong with it. Values are not checked here.
        """

    def head(self, slide_id: str) -> Head:
        """The Head of one slide; formats that can do it without reading everything override this."""
        return head_of(self.read(slide_id))


def head_of(patches: Patches, kind: str = "") -> Head:
    """The Head of a slide that is in memory."""
    n, dim = patches.features.shape
    rows = sample_rows(n)
    coords = None if patches.coords is None else patches.coords[rows]
    return Head(n, dim, kind, Patches(patches.features[rows], coords))


def sample_rows(n: int) -> list[int]:
    """First, middle and last of n rows, in order, each once."""
    return sorted({0, n // 2, n - 1}) if n else []


def as_rows(features: NDArray[Any], path: Path) -> NDArray[np.float32]:
    """[N, D] float32 of what files hold: (N, D), (1, N, D), (D,) of a whole slide, (0,) of an empty one."""
    n, dim = row_shape(features.shape, path)
    if features.dtype.kind != "f":
        raise CohortError(
            f"{path}: features are {features.dtype}, expected floating point; extract them again"
        )
    return _float32(features.reshape(n, dim))


def _float32(features: NDArray[Any]) -> NDArray[np.float32]:
    """Contiguous float32. Half precision goes through torch where that is loaded, as it is in training: torch
    converts with the processor's own instruction, in a third of numpy's time."""
    torch = sys.modules.get("torch")
    if torch is not None and features.dtype == np.float16 and features.flags.writeable:
        rows = np.empty(features.shape, np.float32)
        torch.from_numpy(rows).copy_(torch.from_numpy(features))
        return rows
    with np.errstate(over="ignore"):  # float64 beyond float32 becomes infinite, and is found as that
        return np.ascontiguousarray(features, dtype=np.float32)


def row_shape(shape: tuple[int, ...], path: Path) -> tuple[int, int]:
    """N and D of a stored shape (see `as_rows`)."""
    if len(shape) == 1:
        return (1, shape[0]) if shape[0] else (0, 0)
    if len(shape) == 3 and shape[0] == 1:
        shape = shape[1:]
    if len(shape) != 2:
        raise CohortError(f"{path}: features have shape {shape}, expected (N, D), (1, N, D) or (D,)")
    return shape[0], shape[1]


def checked_coords(coords: NDArray[Any], step: float, n: int, path: Path) -> NDArray[np.float32]:
    """[n, 2] float32 grid coordinates from stored ones and the patch's edge in the same unit."""
    if coords.shape != (n, 2):
        raise CohortError(
            f"{path}: {n} rows of features and coordinates of shape {coords.shape}; expected ({n}, 2); "
            "extract this slide again"
        )
    return (coords.astype(np.float64) / step).astype(np.float32)


def check_size(claimed: int, path: Path) -> None:
    """Refuse a file that claims to hold a thousand times its own size."""
    if claimed > 1000 * max(path.stat().st_size, 1):
        raise CohortError(f"{path}: claims {claimed:,} bytes in a file of {path.stat().st_size:,}; not read")


def grid_step(coords: NDArray[Any]) -> float:
    """The patch's edge in the unit of `coords` [N, 2] where the file does not say it.

    The commonest distance between a patch and the next one in x or in y; 1 if all stand at one place.
    """
    steps = np.abs(np.diff(coords.astype(np.float64), axis=0)).ravel()
    values, counts = np.unique(steps[steps > 0], return_counts=True)
    return float(values[np.argmax(counts)]) if len(values) else 1.0
