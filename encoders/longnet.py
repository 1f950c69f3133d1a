"""LongNet over packed slides: what the encoders of dilated attention share.

They differ in where patches stand (rotary or sine-cosine positions), in their norms, in the zero keys of
their padding, and in where their weights come from: each writes `embed` and `pool`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from slimbench.block_encoder import BlockEncoder, Pack
from slimbench.context import AttentionAhead
from slimbench.encoder import Operation
from slimbench.encoders.attention_backends import backend
from slimbench.encoders.blocks import Block
from slimbench.encoders.dilated_attention import Mode, attended_pairs, check_branches, dilated_attention
from slimbench.encoders.reachability import attended


class LongNet(BlockEncoder):
    """Pre-norm blocks whose attention is dilated.

    project           input_dim -> width, or the identity
    segments, ratios  branches of the dilated attention
    proportional      add log(size) to key logits once tokens were merged (ToMe)
    fusion            last-layer fusion (BlockEncoder)
    padding           as in `dilated_attention`
    """

    padding: ClassVar[Mode] = "exact"

    def __init__(
        self,
        project: nn.Module,
        blocks: Iterable[Block],
        width: int,
        depth: int,
        segments: tuple[int, ...],
        ratios: tuple[int, ...],
        proportional: bool,
        fusion: bool = False,
    ) -> None:
        super().__init__(width, depth, fusion=fusion)
        check_branches(segments, ratios)
        self.segments, self.ratios, self.proportional = segments, ratios, proportional
        self.project = project
        self.blocks = nn.ModuleList(blocks)

    def rotations(self, pack: Pack) -> Tensor | None:
        """[T, d / 2] complex rotations of queries and keys, or None."""
        return None

    def block(self, index: int, pack: Pack) -> Tensor:
        log_size = pack.size.log() if pack.merged and self.proportional else None

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return dilated_attention(
                q,
                k,
                v,
                self.segments,
                self.ratios,
                lengths=pack.lengths,
                log_size=log_size,
                padding=self.padding,
            )

        one_slide = len(pack.lengths) == 1
        turned: Tensor = self.blocks[index](pack.x, self.rotations(pack), attend, by_head=one_slide)
        return turned

    def attention(self, index: int) -> AttentionAhead:
        return self._block(index)

    def operations(self, patches: int, counts: Sequence[int]) -> tuple[Operation, ...]:
        stated: list[Operation] = []
        if isinstance(self.project, nn.Linear):
            flops = 2 * patches * self.project.weight.numel()
            stated.append(Operation("project", "project", flops, flops))
        for index, tokens in enumerate(counts[: self.depth]):
            block = self._block(index)
            branches = (tokens + 1, self.segments, self.ratios, block.heads)
            pairs, padded = attended_pairs(*branches), attended_pairs(*branches, padded=True)
            stated += block.operations(f"blocks.{index}", tokens + 1, pairs, padded)
        return tuple(stated)

    def sources(self, index: int, rows: Tensor) -> Tensor:
        return attended(rows, self.segments, self.ratios, self._block(index).heads)

    def attention_backend(self, device: torch.device, dtype: torch.dtype) -> str:
        return str(backend(device, dtype))

    def _block(self, index: int) -> Block:
        block = self.blocks[index]
        assert isinstance(block, Block)
        return block
