"""SLIM's slide encoder: LongNet with [CLS], rotary 2D positions and reducers between its blocks.

Source: SLIM (Bozkurt et al., NeurIPS 2025 GenAI4Health), section 3; dilated attention from LongNet
(arXiv 2307.02486). `slim-base` is the paper's encoder, `slim-tiny` the one for the embedded cohort.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from slimbench.block_encoder import Pack
from slimbench.encoder import SlideInput
from slimbench.encoders.blocks import Block
from slimbench.encoders.longnet import LongNet
from slimbench.encoders.rope import rotations
from slimbench.errors import UsageError


class Slim(LongNet):
    """LongNet over patch features [N, input_dim]; the embedding is the normalised [CLS], [width].

    input_dim     width of the patch features; projected only when it differs from `width`, as in the
                  paper, whose CONCH v1.5 features are as wide as its encoder
    width, depth, heads, mlp      the paper's 768, 6, 16, 3072
    segments, ratios              branches of the dilated attention
    rope_base     base of the rotary frequencies; the paper states none, 10,000 is RoFormer's
    proportional  add log(size) to key logits once tokens were merged (ToMe)
    fusion        Cropr's last-layer fusion: dropped tokens come back before the last block, which then costs as
                  much as without a reducer; SLIM has none
    """

    def __init__(
        self,
        input_dim: int,
        *,
        width: int = 768,
        depth: int = 6,
        heads: int = 16,
        mlp: int = 3072,
        segments: tuple[int, ...] = (1024, 2048, 4096, 8192, 16384),
        ratios: tuple[int, ...] = (1, 2, 4, 8, 16),
        rope_base: float = 10_000.0,
        proportional: bool = True,
        fusion: bool = False,
    ) -> None:
        if width % heads or (width // heads) % 4:
            raise UsageError(
                f"slim: width {width} over {heads} heads gives {width / heads:g} channels a head; "
                "rotary positions need a multiple of 4"
            )
        project = nn.Linear(input_dim, width) if input_dim != width else nn.Identity()
        blocks = (Block(width, heads, mlp) for _ in range(depth))
        super().__init__(project, blocks, width, depth, segments, ratios, proportional, fusion)
        self.head_dim, self.rope_base = width // heads, rope_base
        self.cls = nn.Parameter(torch.empty(width))
        self.norm = nn.LayerNorm(width)
        nn.init.trunc_normal_(self.cls, std=0.02)

    def embed(self, slides: Sequence[SlideInput]) -> Pack:
        lengths = [len(slide.tokens) for slide in slides]
        x = self.project(torch.cat([slide.tokens.x for slide in slides])).float()
        tokens = [slide.tokens.replace_x(part) for slide, part in zip(slides, x.split(lengths), strict=True)]
        return Pack.join([(self.cls, part) for part in tokens])

    def rotations(self, pack: Pack) -> Tensor:
        return rotations(pack.coords, self.head_dim, self.rope_base)

    def pool(self, pack: Pack) -> Tensor:
        pooled: Tensor = self.norm(pack.x[pack.cls_rows()])
        return pooled


def slim_base(input_dim: int) -> Slim:
    """The paper's encoder: 6 blocks of width 768, 16 heads, segments up to 16,384."""
    return Slim(input_dim)


def slim_tiny(
    input_dim: int,
    *,
    width: int = 48,
    heads: int = 2,
    segments: tuple[int, ...] = (64, 512),
    ratios: tuple[int, ...] = (1, 2),
    fusion: bool = False,
) -> Slim:
    """Six blocks of width 48 for slides of a few hundred patches. [CLS] reads part of the slide in each
    block, as on real slides; with dense attention no reducer would matter on so short a sequence."""
    return Slim(
        input_dim,
        width=width,
        heads=heads,
        mlp=2 * width,
        segments=segments,
        ratios=ratios,
        rope_base=40.0,
        fusion=fusion,
    )
