"""Slides, contexts and a made attention to try a reducer on."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

from slimbench.reducer import Context
from slimbench.seeds import generator
from slimbench.tokens import Tokens

HEADS = 3


class MadeAttention:
    """The attention of a block that does not exist: fixed random projections of x [N, D], in fp32."""

    def __init__(self, dim: int, heads: int = HEADS) -> None:
        if dim % heads:
            raise ValueError(f"{heads} heads do not divide {dim} channels")
        self.weight = torch.randn(3, dim, dim, generator=generator(5)) * dim**-0.5
        self.heads = heads

    def queries(self, x: Tensor) -> Tensor:
        return self._project(x, 0)

    def keys(self, x: Tensor) -> Tensor:
        return self._project(x, 1)

    def mean_keys(self, x: Tensor) -> Tensor:
        per_head = self.weight[1].unflatten(0, (self.heads, -1)).mean(0)
        return linear(x.float(), per_head)

    def values(self, x: Tensor) -> Tensor:
        return self._project(x, 2)

    def _project(self, x: Tensor, which: int) -> Tensor:
        return linear(x.float(), self.weight[which]).unflatten(1, (self.heads, -1))


def made_slide(n: int, dim: int, seed: int = 0, *, merged: bool = False) -> Tokens:
    """N tokens of Gaussian noise on a grid about as high as wide, in raster order.

    merged  True: some stand for more than one patch and some patches are gone, as deep in an encoder
    """
    draw = generator(seed)
    side = int(n**0.5) + 1
    row = torch.arange(n)
    tokens = Tokens.of(torch.randn(n, dim, generator=draw), torch.stack((row % side, row // side), dim=1))
    if not merged:
        return tokens
    size = torch.randint(1, 4, (n,), generator=draw).float()
    return Tokens(tokens.x, tokens.coords + 0.25, size, 2 * tokens.origin)


def made_context(tokens: Tokens, *, layer: int = 1, training: bool = False, trace: bool = True) -> Context:
    """Everything a reducer may ask for, the same for the same tokens."""
    draw = generator(9)
    dim = tokens.x.shape[1]
    cls_token = torch.randn(dim, generator=draw).bfloat16()  # the same vector in either precision
    return Context(
        tokens,
        cls_token.to(tokens.x.dtype),
        layer,
        seed=11,
        training=training,
        trace=trace,
        truth=torch.rand(2 * len(tokens) + 1, generator=draw) < 0.3,
        ahead=MadeAttention(dim),
    )
