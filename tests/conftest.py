"""Files as other programs write them."""

import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch


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
            features = np.random.default_rng(zlib.crc32(slide.encode())).normal(size=(n, dim)).astype(dtype)
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


@pytest.fixture
def published_checkpoint(tmp_path: Path) -> Callable[..., Path]:
    """Writes a `slide_encoder.pth` in the layout that Prov-GigaPath published, with random weights."""

    def write(
        *, features: int = 1536, width: int = 768, depth: int = 12, mlp: int = 3072, seed: int = 7
    ) -> Path:
        draw = torch.Generator().manual_seed(seed)
        state = {"cls_token": torch.randn(1, 1, width, generator=draw)}

        def linear(name: str, out: int, into: int) -> None:
            state[f"{name}.weight"] = torch.randn(out, into, generator=draw) * into**-0.5
            state[f"{name}.bias"] = 0.2 * torch.randn(out, generator=draw)

        def norm(name: str, size: int) -> None:
            state[f"{name}.weight"] = 1 + 0.2 * torch.randn(size, generator=draw)
            state[f"{name}.bias"] = 0.2 * torch.randn(size, generator=draw)

        linear("patch_embed.proj", width, features)
        for layer in range(depth):
            at = f"encoder.layers.{layer}."
            for projection in ("k_proj", "v_proj", "q_proj", "out_proj"):
                linear(f"{at}self_attn.{projection}", width, width)
            norm(f"{at}self_attn.inner_attn_ln", width)
            norm(f"{at}self_attn_layer_norm", width)
            linear(f"{at}ffn.fc1", mlp, width)
            linear(f"{at}ffn.fc2", width, mlp)
            norm(f"{at}ffn.ffn_layernorm", mlp)
            norm(f"{at}final_layer_norm", width)
        norm("encoder.layer_norm", width)
        norm("norm", width)
        path = tmp_path / "slide_encoder.pth"
        torch.save({"model": state}, path)
        return path

    return write
