"""The patch tokens of one slide between two blocks.

[CLS] is never among them: the encoder carries it beside, so no reducer can lose it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Tokens:
    """N patch tokens of ONE slide.

    x       [N, D]  float   embeddings
    coords  [N, 2]  fp32    grid units, (x, y); fractional once tokens were merged
    size    [N]     fp32    how many patches each token stands for
    origin  [N]     int64   index of the patch a token stands at; -1 for one that stands at none
    """

    x: Tensor
    coords: Tensor
    size: Tensor
    origin: Tensor

    @classmethod
    def of(cls, x: Tensor, coords: Tensor | None = None) -> Tokens:
        """One token per patch, as a slide comes from disk.

        x [N, D]; coords [N, 2] in grid units or None: then the row order is the position,
        (row, 0), which is what a slide without coordinates can still say.
        """
        n = x.shape[0]
        if coords is None:
            rows = torch.arange(n, dtype=torch.float32, device=x.device)
            coords = torch.stack((rows, torch.zeros_like(rows)), dim=1)
        return cls(
            x,
            coords.to(x.device, torch.float32),
            torch.ones(n, dtype=torch.float32, device=x.device),
            torch.arange(n, device=x.device),
        )

    def __len__(self) -> int:
        return self.x.shape[0]

    @property
    def device(self) -> torch.device:
        return self.x.device

    def to(self, device: torch.device | str) -> Tokens:
        """The same tokens on another device."""
        return Tokens(self.x.to(device), self.coords.to(device), self.size.to(device), self.origin.to(device))

    def replace_x(self, x: Tensor) -> Tokens:
        """The same tokens with new embeddings x [N, D'] (after a block or a projection)."""
        return Tokens(x, self.coords, self.size, self.origin)

    def take(self, index: Tensor) -> Tokens:
        """The tokens at `index` [K] int64, in that order."""
        return Tokens(self.x[index], self.coords[index], self.size[index], self.origin[index])

    def merge(self, assign: Tensor, count: int, weight: Tensor | None = None) -> Tokens:
        """`count` tokens, token k the weighted mean of those with assign == k.

        assign  [N] int64 in [0, count); every k must have a member
        weight  [N] fp32, positive: the weights of the mean; default `size` (ToMe, arXiv 2210.09461)

        Embeddings and coordinates are averaged in fp32, sizes are summed, and a merged token
        stands at its heaviest member (the first of equals).
        """
        w = self.size if weight is None else weight.float()
        share = w / w.new_zeros(count).index_add(0, assign, w)[assign]
        stands = heaviest(assign, count, w)
        joins = (torch.arange(len(assign), device=self.device) != stands[assign]).nonzero().squeeze(1)

        def mean(part: Tensor) -> Tensor:
            """[count, ...] fp32: the row a group stands at, moved towards each row that joins it; rows that
            nothing joins are only copied, and those are most."""
            first = part.index_select(0, stands).float()
            towards = part.index_select(0, joins).float() - part.index_select(0, stands[assign[joins]])
            return first.index_add_(0, assign[joins], towards * share[joins].unsqueeze(1))

        size = self.size.new_zeros(count).index_add(0, assign, self.size)
        return Tokens(mean(self.x).to(self.x.dtype), mean(self.coords), size, self.origin[stands])

    @classmethod
    def cat(cls, parts: Sequence[Tokens]) -> Tokens:
        """The tokens of `parts`, one after the other."""
        return cls(
            torch.cat([part.x for part in parts]),
            torch.cat([part.coords for part in parts]),
            torch.cat([part.size for part in parts]),
            torch.cat([part.origin for part in parts]),
        )

    def append(self, x: Tensor, coords: Tensor, size: Tensor) -> Tokens:
        """These tokens followed by made ones: x [M, D], coords [M, 2], size [M]; their origin is -1."""
        return Tokens(
            torch.cat((self.x, x.to(self.x.dtype))),
            torch.cat((self.coords, coords.float())),
            torch.cat((self.size, size.float())),
            torch.cat((self.origin, self.origin.new_full((x.shape[0],), -1))),
        )


def heaviest(assign: Tensor, count: int, weight: Tensor) -> Tensor:
    """Row of the heaviest member of each of `count` groups, the first of equals: [count] int64."""
    top = weight.new_full((count,), -torch.inf).scatter_reduce(0, assign, weight.detach(), "amax")
    rows = torch.arange(len(assign), device=assign.device)
    candidates = torch.where(weight.detach() == top[assign], rows, len(assign))
    first = rows.new_full((count,), len(assign))
    return first.scatter_reduce(0, assign, candidates, "amin")
