"""Prov-GigaPath's slide encoder, from its published checkpoint, never trained here.

Xu et al., Nature 2024; github.com/prov-gigapath/prov-gigapath, `gigapath_slide_enc12l768d`: LongNet with
sub-layer norms over Prov-GigaPath's own patch features (1536 wide), [CLS] and fixed sine-cosine positions.
86,330,880 parameters in the 247 tensors of `slide_encoder.pth`.

    slimbench sweep --encoder gigapath:checkpoint=slide_encoder.pth --reducer tome --rates 0.5-0.9

"The" Prov-GigaPath embedding is several: docs/encoders.md has a line for each recipe in use.

Different from the source: the third-longest segment is 185,368 instead of 185,363, which its ratio of 8
does not divide; the two agree up to 185,363 tokens, and beyond them the published code shifts rows.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from slimbench.block_encoder import Pack
from slimbench.encoder import SlideInput
from slimbench.encoders.blocks import Block
from slimbench.encoders.gigapath_checkpoint import FILE, GIGAPATH, find_checkpoint
from slimbench.encoders.longnet import LongNet
from slimbench.encoders.sincos import GridPositions
from slimbench.errors import CheckpointError, CohortError, UsageError

SEGMENTS = (1024, 5792, 32768, 185368, 1048576)
RATIOS = (1, 2, 4, 8, 16)
CELL = 256  # level-0 pixels, by which the published code divides


class GigaPath(LongNet):
    """The frozen encoder; the embedding is [width].

    checkpoint    `slide_encoder.pth`, a folder that holds it, or a Hugging Face id, looked for in its cache
    download      fetch a Hugging Face id that is not in the cache (its owners grant access on request)
    pooling       "cls": the [CLS] token, the library's default; "mean": the mean of the patch tokens, which
                  the authors' demo prefers because pretraining did not train [CLS]
    layer         None: the last block through the encoder's final norm, as a plain call does; 0 to `depth`:
                  the entry of that number of `all_layer_embed`, which never sees that norm, not even at
                  `depth`. Blocks behind it are not run
    step          grid cells per unit of a slide's coordinates: a patch stands in cell floor(step * coords).
                  1: neighbours are one cell apart. The published code divides LEVEL-0 pixels by 256, so
                  that patches of 512 level-0 pixels (read at 20x from a 40x scan) have step 2. None: each
                  slide's own patch size at level 0 over 256, for cohorts of 20x and 40x scans together
    proportional  add log(size) to key logits once tokens were merged (ToMe)
    width, depth, heads, mlp, segments, ratios    of the checkpoint; the defaults are the published ones

    CheckpointError says what is missing in a checkpoint, or where it was looked for.
    """

    pretrained = True
    padding = "torchscale"

    def __init__(
        self,
        input_dim: int = 1536,
        *,
        checkpoint: str = GIGAPATH,
        download: bool = False,
        pooling: Literal["cls", "mean"] = "cls",
        layer: int | None = None,
        step: float | None = 1.0,
        proportional: bool = True,
        width: int = 768,
        depth: int = 12,
        heads: int = 16,
        mlp: int = 3072,
        segments: tuple[int, ...] = SEGMENTS,
        ratios: tuple[int, ...] = RATIOS,
    ) -> None:
        if layer is not None and not 0 <= layer <= depth:
            raise UsageError(f"gigapath: layer {layer} of an encoder of {depth} blocks; 0 is its input")
        blocks = (Block(width, heads, mlp, subln=True) for _ in range(depth))
        run = depth if layer is None else layer
        super().__init__(nn.Linear(input_dim, width), blocks, width, run, segments, ratios, proportional)
        self.pooling, self.step = pooling, step
        self.project: nn.Linear
        self.positions = GridPositions(width)
        self.cls = nn.Parameter(torch.empty(1, 1, width))
        self.final_norm: nn.Module = nn.LayerNorm(width, eps=1e-5)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        load_published(self, find_checkpoint(checkpoint, download))
        if layer is not None:
            self.blocks, self.final_norm = self.blocks[:layer], nn.Identity()

    def embed(self, slides: Sequence[SlideInput]) -> Pack:
        lengths = [len(slide.tokens) for slide in slides]
        x = self.project(torch.cat([slide.tokens.x for slide in slides])).float()
        parts = []
        for slide, features in zip(slides, x.split(lengths), strict=True):
            placed = features + self.positions(self._cells(slide), slide.id)
            parts.append((self.cls.flatten(), slide.tokens.replace_x(placed)))
        return Pack.join(parts)

    def _cells(self, slide: SlideInput) -> Tensor:
        """[N, 2] places in cells, not yet rounded down."""
        if self.step is not None:
            return self.step * slide.tokens.coords
        if slide.patch_size is None:
            raise CohortError(
                f"slide {slide.id}: its features do not say how large a patch is at level 0, which gigapath:step=none "
                f"divides by {CELL}; give step a number, such as 2 for 512 pixels"
            )
        pixels = (slide.tokens.coords.double() * slide.patch_size).round()  # fp32 may end below a cell's edge
        return pixels / CELL

    def pool(self, pack: Pack) -> Tensor:
        """Merged tokens count in the mean as often as the patches they stand for."""
        if self.pooling == "cls":
            pooled: Tensor = self.norm(self.final_norm(pack.x[pack.cls_rows()]))
            return pooled
        means = [(t.size.unsqueeze(1) * self.final_norm(t.x)).sum(0) / t.size.sum() for _, t in pack.slides()]
        pooled = self.norm(torch.stack(means))
        return pooled


def load_published(encoder: GigaPath, path: Path) -> None:
    """Copy the published tensors into `encoder`; CheckpointError unless they are all there, and no others."""
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(
            f"{path} cannot be read as a PyTorch checkpoint ({type(error).__name__}); download {FILE} again"
        ) from error
    if not isinstance(held, dict) or not isinstance(held.get("model"), dict):
        found = f"keys {_some(held)}" if isinstance(held, dict) else f"a {type(held).__name__}"
        raise CheckpointError(f"{path} holds {found}, and no state dict under 'model' as {FILE} does")
    state: dict[str, Tensor] = held["model"]
    features, own_features = state.get("patch_embed.proj.weight"), encoder.project.weight
    if features is not None and features.shape[1:] != own_features.shape[1:]:
        raise CheckpointError(
            f"{path} reads patch features {features.shape[-1]} wide, those of Prov-GigaPath's patch encoder; "
            f"the cohort's are {own_features.shape[-1]} wide"
        )
    shapes: dict[str, tuple[int, ...]] = {}
    for own, tensor in encoder.state_dict().items():
        parts = published_names(own)
        shapes |= {name: (tensor.shape[0] // len(parts), *tensor.shape[1:]) for name in parts}
    complaints = {
        "missing": [name for name in shapes if name not in state],
        "unexpected": [name for name in state if name not in shapes],
        "of another shape": [
            f"{name} {tuple(state[name].shape)} instead of {shape}"
            for name, shape in shapes.items()
            if name in state and tuple(state[name].shape) != shape
        ],
    }
    if any(complaints.values()):
        told = [f"{len(names)} {what}: {_some(names)}" for what, names in complaints.items() if names]
        raise CheckpointError(
            f"{path} does not hold the {len(shapes)} tensors of this slide encoder; {'; '.join(told)}"
        )
    encoder.load_state_dict(
        {own: torch.cat([state[name] for name in published_names(own)]) for own in encoder.state_dict()}
    )


_OUTSIDE = {
    "cls": "cls_token",
    "project": "patch_embed.proj",
    "final_norm": "encoder.layer_norm",
    "norm": "norm",
}
_INSIDE = {
    "norm1": ("self_attn_layer_norm",),
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "inner_norm": ("self_attn.inner_attn_ln",),
    "out": ("self_attn.out_proj",),
    "norm2": ("final_layer_norm",),
    "fc1": ("ffn.fc1",),
    "hidden_norm": ("ffn.ffn_layernorm",),
    "fc2": ("ffn.fc2",),
}


def published_names(own: str) -> tuple[str, ...]:
    """The published tensors that a tensor of ours is made of, end to end.

    >>> published_names("blocks.3.fc1.bias")
    ('encoder.layers.3.ffn.fc1.bias',)
    """
    first, *rest = own.split(".")
    if first != "blocks":
        return (".".join((_OUTSIDE[first], *rest)),)
    index, part, kind = rest
    return tuple(f"encoder.layers.{index}.{name}.{kind}" for name in _INSIDE[part])


def _some(names: Sequence[str] | dict[str, object], most: int = 3) -> str:
    listed = list(map(str, names))
    return ", ".join(listed[:most]) + (", ..." if len(listed) > most else "")
