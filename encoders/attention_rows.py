"""Where dilated attention looks: the rows that one kernel call attends in.

A branch (segment s, ratio r) cuts each slide of L tokens into segments of min(s, L); the heads stand in
groups of ceil(H / r), and group o sees the positions p of a segment with p mod r == o. One (segment,
group) is a row: M positions that attend to each other, h heads that do it.

    StridedRows  rows of ONE slide: strided views, no index, no mask
    PackedRows   rows of many slides: one gather a branch; equally long rows are one kernel call, the
                 ragged ones at most RAGGED_CALLS masked calls, however many slides there are

Shapes: T tokens of all slides, H heads, d width of a head, R rows, M positions of a row, h heads of a
row. Kernels take [R, h, M, d]; `take` cuts that out of a [T, H, d], and `put`, `merge` and `add` bring it
back. No (token, head) stands in two rows of a branch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

RAGGED_CALLS = 4


@dataclass(frozen=True)
class StridedRows:
    """`segments` segments from token `start` on, `groups` head groups from `group` on: R = their product.

    stride: tokens from one segment to the next; zeros: how many zero keys torchscale would append
    to each row, an int64 scalar; None for none.
    """

    start: int
    segments: int
    stride: int
    ratio: int
    group: int
    groups: int
    group_heads: int
    heads: int
    positions: int
    whole: bool
    zeros: tuple[Tensor | None]

    def window(self, x: Tensor) -> Tensor:
        """View [segments, groups, M, h, ...] of x [T, H, ...]."""
        token, head, *rest = x.stride()
        size = (self.segments, self.groups, self.positions, self.heads, *x.shape[2:])
        step = token + self.group_heads * head  # the next group: one token on, its own heads
        stride = (self.stride * token, step, self.ratio * token, head, *rest)
        return x.as_strided(size, stride, x.storage_offset() + self.start * token + self.group * step)

    def take(self, x: Tensor) -> tuple[Tensor]:
        return (self.window(x).flatten(0, 1).transpose(1, 2),)

    take_grad = take

    def put(self, x: Tensor, rows: Sequence[Tensor]) -> None:
        self.window(x).copy_(self._tokens(rows[0]))

    def add(self, x: Tensor, rows: Sequence[Tensor]) -> None:
        self.window(x).add_(self._tokens(rows[0]))

    def merge(self, out: Tensor, lse: Tensor, outs: Sequence[Tensor], lses: Sequence[Tensor]) -> None:
        mix(self.window(out), self.window(lse), self._tokens(outs[0]), self._tokens(lses[0]))

    def biases(self, log_size: Tensor | None) -> tuple[Tensor | None]:
        if log_size is None:
            return (None,)
        size = (self.segments, self.groups, self.positions)
        sizes = log_size.as_strided(
            size, (self.stride, 1, self.ratio), log_size.storage_offset() + self.start + self.group
        )
        return (sizes.flatten(0, 1)[:, None, None],)

    def _tokens(self, rows: Tensor) -> Tensor:
        return rows.transpose(1, 2).unflatten(0, (self.segments, self.groups))


@dataclass(frozen=True)
class PackedRows:
    """The rows of one branch over all slides, as sub-batches of equal M and h.

    index  [sum R M h] int64  rows of a [T H, d]; padding repeats the row's last position
    real   [V] int64 | None   which of `index` are no padding; None: all
    place  [V] int64          index[real]
    shapes                    (R, M, h) of each sub-batch
    tokens                    [R, M] int64 token of each position, per sub-batch
    hidden                    [R, M] bool, True on padding, or None, per sub-batch
    """

    index: Tensor
    real: Tensor | None
    place: Tensor
    shapes: tuple[tuple[int, int, int], ...]
    tokens: tuple[Tensor, ...]
    hidden: tuple[Tensor | None, ...]
    whole: bool
    zeros: tuple[Tensor | None, ...]

    def take(self, x: Tensor) -> tuple[Tensor, ...]:
        flat = x.reshape(-1, *x.shape[2:]).index_select(0, self.index)
        parts = flat.split([r * m * h for r, m, h in self.shapes])
        return tuple(p.unflatten(0, s).transpose(1, 2) for p, s in zip(parts, self.shapes, strict=True))

    def take_grad(self, x: Tensor) -> tuple[Tensor, ...]:
        """`take` with zeros on padding: a query that is not there passes nothing back."""
        rows = self.take(x)
        for row, hidden in zip(rows, self.hidden, strict=True):
            if hidden is not None:
                row.masked_fill_(hidden[:, None, :, None], 0)
        return rows

    def put(self, x: Tensor, rows: Sequence[Tensor]) -> None:
        x.flatten(0, 1).index_copy_(0, self.place, self._flat(rows))

    def add(self, x: Tensor, rows: Sequence[Tensor]) -> None:
        x.flatten(0, 1).index_add_(0, self.place, self._flat(rows))

    def merge(self, out: Tensor, lse: Tensor, outs: Sequence[Tensor], lses: Sequence[Tensor]) -> None:
        out, lse = out.flatten(0, 1), lse.flatten()
        old, old_lse = out.index_select(0, self.place), lse.index_select(0, self.place)
        mix(old, old_lse, self._flat(outs), self._flat(lses))
        out.index_copy_(0, self.place, old)
        lse.index_copy_(0, self.place, old_lse)

    def biases(self, log_size: Tensor | None) -> tuple[Tensor | None, ...]:
        return tuple(
            _bias(log_size, tokens, hidden) for tokens, hidden in zip(self.tokens, self.hidden, strict=True)
        )

    def _flat(self, rows: Sequence[Tensor]) -> Tensor:
        flat = torch.cat([x.transpose(1, 2).flatten(0, 2) for x in rows])
        return flat if self.real is None else flat.index_select(0, self.real)


Rows = StridedRows | PackedRows


def mix(out: Tensor, lse: Tensor, new: Tensor, new_lse: Tensor) -> None:
    """Join two softmaxes over different keys, in place: out [..., d], lse [...] become those over both."""
    out.lerp_(new, torch.sigmoid(new_lse - lse).unsqueeze(-1).to(out.dtype))
    lse.copy_(torch.logaddexp(lse, new_lse))


def _bias(log_size: Tensor | None, tokens: Tensor, hidden: Tensor | None) -> Tensor | None:
    """[R, 1, 1, M]"""
    if hidden is None and log_size is None:
        return None
    bias = torch.zeros(tokens.shape, device=tokens.device) if log_size is None else log_size[tokens]
    return (bias if hidden is None else bias.masked_fill(hidden, -torch.inf))[:, None, None]


@lru_cache(maxsize=64)
def plan_rows(
    lengths: tuple[int, ...],
    segments: tuple[int, ...],
    ratios: tuple[int, ...],
    heads: int,
    device: torch.device,
) -> tuple[Rows, ...]:
    """Rows of all branches, those of ratio 1 first: they fill every (token, head)."""
    branches = sorted(zip(segments, ratios, strict=True), key=lambda branch: branch[1])
    rows: list[Rows] = []
    whole = False
    for segment, ratio in branches:
        fills = ratio == 1 and not whole
        whole = whole or fills
        if len(lengths) == 1:
            rows += _strided(lengths[0], segment, ratio, heads, fills, device)
        else:
            rows += [_packed(lengths, segment, ratio, heads, fills, device)]
    return tuple(rows)


def _strided(
    length: int, segment: int, ratio: int, heads: int, whole: bool, device: torch.device
) -> list[StridedRows]:
    """Full segments, then the ragged tail; a call each for groups that see equally many positions."""
    segment = min(segment, length)
    full, tail = divmod(length, segment)
    group_heads = -(-heads // ratio)
    padded = -(-segment // ratio)
    rows = []
    for start, count, size in ((0, full, segment), (full * segment, 1, tail)):
        classes: dict[tuple[int, int], list[int]] = {}
        for group in range(min(-(-heads // group_heads), size)):
            positions = -(-(size - group) // ratio)
            group_size = min(group_heads, heads - group * group_heads)
            classes.setdefault((positions, group_size), []).append(group)
        for (positions, group_size), groups in classes.items():
            zeros = padded - positions
            pad = torch.tensor(zeros, device=device) if zeros else None
            rows.append(
                StridedRows(
                    start, count, segment, ratio, groups[0], len(groups), group_heads, group_size, positions,
                    whole, (pad,),
                )
            )  # fmt: skip
    return rows


def _packed(
    lengths: tuple[int, ...], segment: int, ratio: int, heads: int, whole: bool, device: torch.device
) -> PackedRows:
    length = np.asarray(lengths)
    first = np.cumsum(length) - length
    size = np.minimum(segment, length)
    count = -(-length // size)
    # one entry a segment
    slide = np.repeat(np.arange(len(length)), count)
    number = np.arange(len(slide)) - np.repeat(np.cumsum(count) - count, count)
    begin = number * size[slide]
    have = np.minimum(size[slide], length[slide] - begin)
    # one entry a (segment, group)
    group_heads = -(-heads // ratio)
    group = np.arange(-(-heads // group_heads))
    positions = -(-(have[:, None] - group) // ratio)
    seg, grp = np.nonzero(positions > 0)
    positions = positions[seg, grp]
    start = first[slide[seg]] + begin[seg] + grp
    zeros = -(-size[slide[seg]] // ratio) - positions
    width = np.minimum(group_heads, heads - grp * group_heads)
    longest = positions.max()
    bucket = np.where(positions == longest, RAGGED_CALLS + 1, -(-RAGGED_CALLS * positions // longest))

    index, real, shapes, tokens, hidden, pads = [], [], [], [], [], []
    offset = 0
    for key in np.unique(np.stack((bucket, width)), axis=1).T:
        rows = np.nonzero((bucket == key[0]) & (width == key[1]))[0]
        n, h = positions[rows], int(key[1])
        step = np.arange(n.max())
        token = start[rows, None] + ratio * np.minimum(step, n[:, None] - 1)
        head = grp[rows, None] * group_heads + np.arange(h)
        flat = token[:, :, None] * heads + head[:, None]
        absent = step >= n[:, None]
        ragged = bool(absent.any())
        index.append(flat.ravel())
        real.append(offset + np.nonzero(~np.repeat(absent, h))[0])
        offset += flat.size
        shapes.append(flat.shape)
        tokens.append(torch.from_numpy(token).to(device))
        hidden.append(torch.from_numpy(absent).to(device) if ragged else None)
        pad = torch.from_numpy(zeros[rows])[:, None, None].to(device)
        pads.append(pad if zeros[rows].any() else None)
    all_index, all_real = np.concatenate(index), np.concatenate(real)
    return PackedRows(
        torch.from_numpy(all_index).to(device),
        torch.from_numpy(all_real).to(device) if len(all_real) < len(all_index) else None,
        torch.from_numpy(all_index[all_real]).to(device),
        tuple(shapes),
        tuple(tokens),
        tuple(hidden),
        whole,
        tuple(pads),
    )
