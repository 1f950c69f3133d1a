"""The pre-norm block that slim, gigapath and their kind are made of.

    x += out(attend(rope(q), rope(k), v)),  q, k, v = qkv(norm1(x))
    x += fc2(gelu(fc1(norm2(x))))

The residual stream and every LayerNorm stay in fp32; under autocast the products are bf16. Without
gradients the block works in place and in chunks of rows, so that its memory does not depend on depth
and the wide hidden layer never exists for more than a chunk.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slimbench.encoder import Operation
from slimbench.encoders.rope import rotate, rotate_

# Of the hidden layer of a chunk at inference: on the CPU what a cache holds and malloc gives out again without
# asking the system for fresh pages, on a GPU what fills it.
CHUNK_BYTES = {"cpu": 12 << 20, "cuda": 256 << 20}

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(q, k, v) [T, H, d] -> [T, H, d] over a packed batch."""


class Ahead:
    """What a reducer before a block may ask for (slimbench.reducer.AttentionAhead), from the block's norm
    and its fused projection; a block that keeps q, k and v apart overrides `projection`."""

    norm1: nn.Module
    qkv: nn.Linear
    heads: int

    def queries(self, x: Tensor) -> Tensor:
        return self._part(x, 0)

    def keys(self, x: Tensor) -> Tensor:
        return self._part(x, 1)

    def values(self, x: Tensor) -> Tensor:
        return self._part(x, 2)

    def mean_keys(self, x: Tensor) -> Tensor:
        weight, bias = self.projection(1)
        per_head = weight.unflatten(0, (self.heads, -1)).mean(0)
        return F.linear(self.norm1(x), per_head, bias.unflatten(0, (self.heads, -1)).mean(0))

    def projection(self, which: int) -> tuple[Tensor, Tensor]:
        """Weight and bias of q (0), k (1) or v (2) inside the fused projection."""
        dim = self.qkv.in_features
        rows = slice(which * dim, (which + 1) * dim)
        return self.qkv.weight[rows], self.qkv.bias[rows]

    def _part(self, x: Tensor, which: int) -> Tensor:
        return F.linear(self.norm1(x), *self.projection(which)).unflatten(1, (self.heads, -1))


class Block(Ahead, nn.Module):
    """One block of width D with H heads.

    subln  LayerNorm before the attention's output projection and before fc2 (Prov-GigaPath)
    eps    of every LayerNorm
    """

    def __init__(self, dim: int, heads: int, mlp: int, *, subln: bool = False, eps: float = 1e-5) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.inner_norm = nn.LayerNorm(dim, eps=eps) if subln else nn.Identity()
        self.out = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.fc1 = nn.Linear(dim, mlp)
        self.hidden_norm = nn.LayerNorm(mlp, eps=eps) if subln else nn.Identity()
        self.fc2 = nn.Linear(mlp, dim)

    def forward(
        self, x: Tensor, rotations: Tensor | None, attend: Attend, *, by_head: bool = False
    ) -> Tensor:
        """x [T, D] -> [T, D]. Without gradients x is overwritten.

        rotations  [T, d / 2] complex, or None
        by_head    without gradients, lay q, k and v out head by head: a faster read for attention over
                   one slide, a copy more for one that needs the heads of a token together
        """
        if torch.is_grad_enabled():
            return self._train(x, rotations, attend)
        return self._infer(x, rotations, attend, by_head)

    def _train(self, x: Tensor, rotations: Tensor | None, attend: Attend) -> Tensor:
        q, k, v = self._heads(self.qkv(self.norm1(x))).unbind(1)
        if rotations is not None:
            q, k = rotate(q, rotations), rotate(k, rotations)
        x = x + self.out(self.inner_norm(attend(q, k, v).flatten(1)))
        return x + self._mlp(self.norm2(x))

    def _infer(self, x: Tensor, rotations: Tensor | None, attend: Attend, by_head: bool) -> Tensor:
        chunks, qkv = self._chunks(x), None
        work = _Workspace(x, len(x[chunks[0]]), max(self.qkv.out_features, self.fc1.out_features))
        for rows in chunks:
            part = self._heads(work.product(self.qkv, self.norm1(x[rows])))
            if rotations is not None:
                rotate_(part[:, :2].flatten(1, 2), rotations[rows])
            if qkv is None:
                qkv = _like(part, len(x), by_head)
            qkv[rows] = part
        assert qkv is not None
        mixed = attend(*qkv.unbind(1)).flatten(1)
        del qkv
        for rows in chunks:
            work.add_product(x[rows], self.out, self.inner_norm(mixed[rows]))
            hidden = torch.ops.aten.gelu_(work.product(self.fc1, self.norm2(x[rows])))
            work.add_product(x[rows], self.fc2, self.hidden_norm(hidden))
        return x

    def _chunks(self, x: Tensor) -> list[slice]:
        device = x.device.type
        cast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if cast else self.fc1.weight.dtype
        rows = max(
            1, CHUNK_BYTES.get(device, CHUNK_BYTES["cuda"]) // (self.fc1.out_features * dtype.itemsize)
        )
        return [slice(start, start + rows) for start in range(0, len(x), rows)]

    def _mlp(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.fc2(self.hidden_norm(F.gelu(self.fc1(x))))
        return hidden

    def _heads(self, qkv: Tensor) -> Tensor:
        """[T, 3 D] -> [T, 3, H, d], a view."""
        return qkv.unflatten(1, (3, self.heads, -1))

    def operations(self, part: str, rows: int, pairs: int, padded: int) -> tuple[Operation, ...]:
        """The products of one call on `rows` rows, [CLS] among them.

        part    name of this block in its encoder
        pairs   query-key pairs of the attention over all heads; padded  with zero-padded segments
        """
        head_dim = self.qkv.in_features // self.heads
        layers = {"qkv": self.qkv, "out": self.out, "fc1": self.fc1, "fc2": self.fc2}
        linear = {name: 2 * rows * layer.weight.numel() for name, layer in layers.items()}
        return (
            *(Operation(part, name, flops, flops) for name, flops in linear.items()),
            Operation(part, "attention", 4 * pairs * head_dim, 4 * padded * head_dim),
        )


class _Workspace:
    """Where the products of one chunk after another are written.

    Otherwise each is memory fresh from the system, page by page, and the sum with the residual a pass of its
    own: 2 to 3 % of a block in fp32. Under autocast a product makes a tensor of its own.
    """

    def __init__(self, x: Tensor, rows: int, width: int) -> None:
        self.autocast = torch.is_autocast_enabled(x.device.type)
        self.flat = x.new_empty(0 if self.autocast else rows * width)

    def product(self, layer: nn.Linear, x: Tensor) -> Tensor:
        """layer(x), until the next product overwrites it."""
        if self.autocast:
            own: Tensor = layer(x)
            return own
        out = self.flat[: len(x) * layer.out_features].view(len(x), -1)
        return torch.addmm(layer.bias, x, layer.weight.t(), out=out)

    def add_product(self, total: Tensor, layer: nn.Linear, x: Tensor) -> None:
        """total += layer(x)"""
        if self.autocast:
            total += layer(x)
        else:
            torch.addmm(total.add_(layer.bias), x, layer.weight.t(), out=total)


def _like(part: Tensor, rows: int, by_head: bool) -> Tensor:
    """An empty [rows, 3, H, d] for parts [n, 3, H, d], in memory [3, H, rows, d] if by_head."""
    _, three, heads, width = part.shape
    if by_head:
        return part.new_empty(three, heads, rows, width).permute(2, 0, 1, 3)
    return part.new_empty(rows, three, heads, width)
