"""Files as other programs write them, for the tests of cohorts."""

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest


@pytest.fixture
def own_cache(tmp_path, monkeypatch) -> Path:
    """A user's cache of this test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "slimbench"


@pytest.fixture
def write_trident() -> Callable[..., np.ndarray]:
    """Writes `<folder>/<slide>.h5` as TRIDENT does (chunks of one row, attributes on `coords`), and
    returns the features."""

    def write(
        folder: Path,
        slide: str,
        n: int = 12,
        dim: int = 8,
        *,
        features: np.ndarray | None = None,
        edge: int = 1024,
        patch_size: int = 512,
        encoder: str = "conch_v15",
        dtype: str = "float32",
        batched: bool = False,
    ) -> np.ndarray:
        folder.mkdir(parents=True, exist_ok=True)
        if features is None:
            seed = sum(map(ord, slide))
            features = np.random.default_rng(seed).normal(size=(n, dim)).astype(dtype)
        n = len(features)
        cells = np.stack((np.arange(n) % 5, np.arange(n) // 5), axis=1)
        with h5py.File(folder / f"{slide}.h5", "w") as file:
            shape = (1, *features.shape) if batched else features.shape
            chunks = (1,) * (len(shape) - 1) + (max(shape[-1], 1),)
            maximum = (None,) * len(shape)
            stored = file.create_dataset(
                "features", data=features.reshape(shape), chunks=chunks, maxshape=maximum
            )
            stored.attrs.update({"name": slide, "encoder": encoder, "savetodir": str(folder)})
            coords = file.create_dataset(
                "coords", data=(cells * edge).astype(np.int64), chunks=(1, 2), maxshape=(None, 2)
            )
            coords.attrs.update(
                {
                    "patch_size": patch_size,
                    "patch_size_level0": edge,
                    "level0_magnification": 40,
                    "target_magnification": 20,
                    "overlap": 0,
                    "name": slide,
                    "level0_width": "None",
                }
            )
        return features.astype(np.float32)

    return write
