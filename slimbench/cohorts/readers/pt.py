"""Torch files `<slide>.pt`: a tensor (N, D) as CLAM, Prov-GigaPath, HistGen and eva write it.

Also a dictionary with `features` (or `feats`, `embeddings`) and, sometimes, `coords` in pixels. A tensor
has no coordinates: its row order is the position. Only tensors are unpickled (weights_only=True).
"""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slimbench.cohorts.cohort import Patches
from slimbench.cohorts.readers.file import (
    FeatureFile,
    Head,
    as_rows,
    check_size,
    checked_coords,
    grid_step,
    row_shape,
    sample_rows,
)
from slimbench.errors import CohortError

_NAMES = ("features", "feats", "embeddings")


class TorchFile(FeatureFile):
    """One slide in a .pt file."""

    format = "pt"
    suffixes = (".pt", ".pth")

    @classmethod
    def detect(cls, path: Path) -> bool:
        return True

    def read(self, slide_id: str) -> Patches:
        features, coords = self._load()
        rows = as_rows(self._array(features), self.path)
        return Patches(rows, self._grid(coords, len(rows)))

    def head(self, slide_id: str) -> Head:
        features, coords = self._load()
        n, dim = row_shape(tuple(features.shape), self.path)
        rows, grid = sample_rows(n), self._grid(coords, n)
        sample = as_rows(self._array(features.reshape(n, dim)[rows]), self.path).reshape(len(rows), dim)
        return Head(n, dim, "", Patches(sample, None if grid is None else grid[rows]))

    def _load(self) -> tuple[Any, Any]:
        """The tensors of features and coordinates (or None), mapped from the disk where the format can."""
        import torch

        try:
            content = torch.load(
                self.path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(self.path) or None
            )
        except FileNotFoundError:
            raise CohortError(f"no feature file {self.path}") from None
        except pickle.UnpicklingError:
            raise CohortError(
                f"{self.path}: holds more than tensors; not loaded, save the tensor alone"
            ) from None
        except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())[:200]
            raise CohortError(f"{self.path}: damaged torch file ({reason}); copy this slide again") from None
        coords = None
        if isinstance(content, dict):
            coords = content.get("coords")
            content = next((content[name] for name in _NAMES if name in content), None)
        if not isinstance(content, torch.Tensor):
            raise CohortError(f"{self.path}: no tensor; expected one, or a dictionary with `features`")
        check_size(content.numel() * content.element_size(), self.path)
        return content, coords

    def _grid(self, coords: Any, n: int) -> NDArray[np.float32] | None:
        if coords is None:
            return None
        pixels = np.asarray(coords).reshape(-1, 2)
        return checked_coords(pixels, grid_step(pixels), n, self.path)

    def _array(self, features: Any) -> NDArray[Any]:
        import torch

        if features.dtype == torch.bfloat16:
            features = features.float()
        array: NDArray[Any] = features.numpy()
        return array
