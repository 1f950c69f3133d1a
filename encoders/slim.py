"""SLIM's slide encoder: LongNet with [CLS], rotary 2D positions and reducers between its blocks.

Source: SLIM (Bozkurt et al., NeurIPS 2025 GenAI4Health), section 3; dilated attention from LongNet
(arXiv 2307.02486). `slim-base` is the paper's encoder, `slim-tiny` the one for the embedded cohort.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from slimbench.context import AttentionAhead
from slimbench.encoder import BlockEncoder, Operation, Pack, SlideInput
from slimbench.encoders.attention_backends import backend
from slimbench.encoders.blocks import Block
from slimbench.encoders.dilated_attention import attended_pairs, check_branches, dilated_attention
from slimbench.encoders.rope import rotations
from slimbench.errors import UsageError


class Slim(BlockEncoder):
    """LongNet over patch features [N, input_dim]; the embedding is the normalised [CLS], [width].

    input_dim     width of the patch features; projected only when it differs from `width`, as in the
                  paper, whose CONCH v1.5 features are as wide as its encoder
    width, depth, heads, mlp      the paper's 768, 6, 16, 3072
    segments, ratios              branches of the dilated attention
    rope_base     base of the rotary frequencies; the paper states none, 10,000 is RoFormer's
    proportional  add log(size) to key logits once tokens were merged (ToMe)
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
    ) -> None:
        super().__init__(width, depth)
        if width % heads or (width // heads) % 4:
            raise UsageError(
                f"slim: width {width} over {heads} heads gives {width / heads:g} channels a head; "
                "rotary positions need a multiple of 4"
            )
        check_branches(segments, ratios)
        self.segments, self.ratios = segments, ratios
        self.head_dim, self.rope_base, self.proportional = width // heads, rope_base, proportional
        self.project = nn.Linear(input_dim, width) if input_dim != width else nn.Identity()
        self.cls = nn.Parameter(torch.empty(width))
        self.blocks = nn.ModuleList(Block(width, heads, mlp) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        nn.init.trunc_normal_(self.cls, std=0.02)

    def embed(self, slides: Sequence[SlideInput]) -> Pack:
        lengths = [len(slide.tokens) for slide in slides]
        x = self.project(torch.cat([slide.tokens.x for slide in slides])).float()
        tokens = [slide.tokens.replace_x(part) for slide, part in zip(slides, x.split(lengths), strict=True)]
        return Pack.join([(self.cls, part) for part in tokens])

    def block(self, index: int, pack: Pack) -> Tensor:
        log_size = pack.size.log() if pack.merged and self.proportional else None

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return dilated_attention(
                q, k, v, self.segments, self.ratios, lengths=pack.lengths, log_size=log_size
            )

        turned: Tensor = self.blocks[index](
            pack.x, rotations(pack.coords, self.head_dim, self.rope_base), attend
        )
        return turned

    def attention(self, index: int) -> AttentionAhead:
        block = self.blocks[index]
        assert isinstance(block, Block)
        return block

    def pool(self, pack: Pack) -> Tensor:
        pooled: Tensor = self.norm(pack.x[pack.cls_rows()])
        return pooled

    def operations(self, patches: int, counts: Sequence[int]) -> tuple[Operation, ...]:
        stated: list[Operation] = []
        if isinstance(self.project, nn.Linear):
            flops = 2 * patches * self.project.weight.numel()
            stated.append(Operation("project", "project", flops, flops))
        for index, tokens in enumerate(counts):
            block = self.blocks[index]
            assert isinstance(block, Block)
            branches = (tokens + 1, self.segments, self.ratios, block.heads)
            pairs, padded = attended_pairs(*branches), attended_pairs(*branches, padded=True)
            stated += block.operations(f"blocks.{index}", tokens + 1, pairs, padded)
        return tuple(stated)

    def attention_backend(self, device: torch.device, dtype: torch.dtype) -> str:
        return backend(device, dtype).name


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
) -> Slim:
    """Six blocks of width 48 for slides of a few hundred patches. [CLS] reads part of the slide in each
    block, as on real slides; with dense attention no reducer would matter on so short a sequence."""
    return Slim(
        input_dim, width=width, heads=heads, mlp=2 * width, segments=segments, ratios=ratios, rope_base=40.0
    )
