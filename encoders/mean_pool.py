"""Mean pooling: no encoder at all, the baseline that every row is read against.

A reducer may stand before the mean: `--encoder mean-pool --reducer random --rates 0.9` is the mean of a
random tenth of the patches.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from slimbench.block_encoder import BlockEncoder, Pack
from slimbench.encoder import SlideInput


class MeanPool(BlockEncoder):
    """The size-weighted mean of the patch features, [input_dim]; no parameters, no blocks."""

    def __init__(self, input_dim: int) -> None:
        super().__init__(input_dim, depth=0)

    def embed(self, slides: Sequence[SlideInput]) -> Pack:
        return Pack.join([(slide.tokens.x.new_zeros(self.dim), slide.tokens) for slide in slides])

    def block(self, index: int, pack: Pack) -> Tensor:
        raise IndexError(f"mean-pool has no block {index}")

    def attention(self, index: int) -> None:
        return None

    def pool(self, pack: Pack) -> Tensor:
        means = [(t.size.unsqueeze(1) * t.x).sum(0) / t.size.sum() for _, t in pack.slides()]
        return torch.stack(means)
