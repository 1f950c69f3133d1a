"""A slide encoder of timm's own ViT blocks: dense attention, the TITAN kind, to compare reducers under both.

[CLS], rotary positions and reducers as in `slim`; every token sees every other, so time is quadratic in
tokens. Blocks, parameters and MLP are timm's (0.6.13 and 1.x); only the step between `qkv` and `proj` is
ours, because timm's attention knows neither packed slides nor two-dimensional positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from slimbench.block_encoder import BlockEncoder, Pack
from slimbench.encoder import Operation, SlideInput
from slimbench.encoders.blocks import Ahead
from slimbench.encoders.rope import rotate, rotations
from slimbench.errors import UsageError


class ViT(BlockEncoder):
    """timm ViT blocks over patch features [N, input_dim]; the embedding is the normalised [CLS], [width].

    width, depth, heads, mlp_ratio    the defaults are TITAN's 768, 6, 12 and 4 (arXiv 2411.19666)
    rope_base     base of the rotary frequencies
    proportional  add log(size) to key logits once tokens were merged (ToMe)
    fusion        last-layer fusion, as in `slim`
    """

    def __init__(
        self,
        input_dim: int,
        *,
        width: int = 768,
        depth: int = 6,
        heads: int = 12,
        mlp_ratio: float = 4.0,
        rope_base: float = 10_000.0,
        proportional: bool = True,
        fusion: bool = False,
    ) -> None:
        super().__init__(width, depth, fusion=fusion)
        if width % heads or (width // heads) % 4:
            raise UsageError(
                f"vit: width {width} over {heads} heads gives {width / heads:g} channels a head; "
                "rotary positions need a multiple of 4"
            )
        self.head_dim, self.rope_base, self.proportional = width // heads, rope_base, proportional
        norm = partial(nn.LayerNorm, eps=1e-6)
        self.project = nn.Linear(input_dim, width) if input_dim != width else nn.Identity()
        self.cls = nn.Parameter(torch.empty(width))
        self.blocks = nn.ModuleList(
            DenseBlock(width, heads, mlp_ratio, qkv_bias=True, norm_layer=norm) for _ in range(depth)
        )
        self.norm = norm(width)
        nn.init.trunc_normal_(self.cls, std=0.02)

    def embed(self, slides: Sequence[SlideInput]) -> Pack:
        lengths = [len(slide.tokens) for slide in slides]
        x = self.project(torch.cat([slide.tokens.x for slide in slides])).float()
        tokens = [slide.tokens.replace_x(part) for slide, part in zip(slides, x.split(lengths), strict=True)]
        return Pack.join([(self.cls, part) for part in tokens])

    def block(self, index: int, pack: Pack) -> Tensor:
        log_size = pack.size.log() if pack.merged and self.proportional else None
        by = rotations(pack.coords, self.head_dim, self.rope_base)
        turned: Tensor = self.blocks[index](pack.x, by, pack.lengths, log_size)
        return turned

    def attention(self, index: int) -> DenseAhead:
        return DenseAhead(self.blocks[index])

    def pool(self, pack: Pack) -> Tensor:
        pooled: Tensor = self.norm(pack.x[pack.cls_rows()])
        return pooled

    def operations(self, patches: int, counts: Sequence[int]) -> tuple[Operation, ...]:
        stated: list[Operation] = []
        if isinstance(self.project, nn.Linear):
            flops = 2 * patches * self.project.weight.numel()
            stated.append(Operation("project", "project", flops, flops))
        for index, tokens in enumerate(counts):
            block: Any = self.blocks[index]
            rows = tokens + 1
            layers = {
                "qkv": block.attn.qkv,
                "proj": block.attn.proj,
                "fc1": block.mlp.fc1,
                "fc2": block.mlp.fc2,
            }
            products = {name: 2 * rows * layer.weight.numel() for name, layer in layers.items()}
            products["attention"] = 4 * rows * rows * self.dim
            stated += [Operation(f"blocks.{index}", name, flops, flops) for name, flops in products.items()]
        return tuple(stated)

    def sources(self, index: int, rows: Tensor) -> Tensor:
        return rows.any().expand(len(rows))

    def attention_backend(self, device: torch.device, dtype: torch.dtype) -> str:
        return "torch scaled_dot_product_attention"


def vit_tiny(input_dim: int, *, width: int = 48, heads: int = 2, fusion: bool = False) -> ViT:
    """Six blocks of width 48: slim-tiny with dense attention."""
    return ViT(input_dim, width=width, heads=heads, mlp_ratio=2.0, rope_base=40.0, fusion=fusion)


class DenseBlock(Block):
    """timm's pre-norm block over slides packed end to end, each attending to itself."""

    def forward(self, x: Tensor, by: Tensor, lengths: Sequence[int], log_size: Tensor | None) -> Tensor:
        """x [T, D] -> [T, D]; by [T, d / 2] complex rotations; log_size [T] is added to key logits."""
        q, k, v = self.attn.qkv(self.norm1(x)).unflatten(1, (3, self.attn.num_heads, -1)).unbind(1)
        mixed = dense_attention(rotate(q, by), rotate(k, by), v, lengths, log_size)
        x = x + self.attn.proj(mixed.flatten(1))
        turned: Tensor = x + self.mlp(self.norm2(x))
        return turned


class DenseAhead(Ahead):
    """A timm block as a reducer before it sees it."""

    def __init__(self, block: Any) -> None:
        self.norm1, self.qkv, self.heads = block.norm1, block.attn.qkv, block.attn.num_heads


def dense_attention(
    q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int], log_size: Tensor | None
) -> Tensor:
    """q, k, v [T, H, d] of packed slides, each attending to itself: [T, H, d]; log_size [T] or None."""
    mixed = []
    for start, length in zip(accumulate(lengths, initial=0), lengths, strict=False):
        rows = slice(start, start + length)
        queries, keys, values = (x[rows].transpose(0, 1).unsqueeze(0) for x in (q, k, v))
        bias = None if log_size is None else log_size[rows].to(q.dtype).expand(1, 1, length, length)
        mixed.append(F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias))
    return torch.cat([x.squeeze(0).transpose(0, 1) for x in mixed])
