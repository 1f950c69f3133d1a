"""Where dilated attention looks: the rows of tokens that one kernel call attends in.

A branch (segment s, ratio r) cuts each slide of L tokens into segments of min(s, L); the heads stand in
groups of ceil(H / r), and group o sees the positions p of a segment with p mod r == o. One (segment,
group) is a row: M tokens that attend to each other, in h heads. No (token, head) stands in two rows of
a branch.

    StridedRows   equal rows of ONE slide: strided views, no index, no mask, nothing padded
    GatheredRows  rows of similar length of MANY slides: an index and, where some are shorter, a mask; a
                  branch has at most CALLS + 1 of them (twice that where its ratio does not divide H),
                  however many slides there are

Shapes: T tokens, H heads, d width of a head, R rows, M tokens a row, h heads a row. `take` cuts the
rows [R, h, M, d] out of an input [T, H, d], `take_total` out of a tensor [T + spare, H, ...] of ours,
and `put`, `add` and `mix` bring rows back to such a tensor.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

CALLS = 8  # a branch over a packed batch has at most one more kernel calls than this
CALL_COST = 65_536  # (query, key, head) triples that take as long as one more call (CPU, fp32, d = 24)
MASK_COST = 0.04  # share of a row's time that a mask adds
# (token, head) pairs in one call on one slide: what the call makes is small beside the slide, and on the CPU
# stays in cache and in memory that malloc hands out again.
CALL_ROWS = {"cpu": 32_768, "cuda": 1 << 20}
LANES = 16  # ragged rows are filled up to a multiple: what is left over of a vector runs one by one


@dataclass(frozen=True)
class StridedRows:
    """`segments` segments from token `start` on, times `groups` head groups from `group` on.

    stride  tokens from one segment to the next
    whole   these rows belong to the first branch of ratio 1, whose rows hold every (token, head)
    zeros   how many zero keys torchscale appends to each row: int64 scalar, or None
    """

    start: int
    segments: int
    stride: int
    ratio: int
    group: int
    groups: int
    group_heads: int
    heads: int
    tokens: int
    whole: bool
    zeros: Tensor | None

    spare = 0

    def take(self, x: Tensor) -> Tensor:
        """A view where strides allow, as they do where the ratio is 1."""
        return self._window(x).flatten(0, 1).transpose(1, 2)

    take_total = take

    def bias(self, log_size: Tensor | None) -> Tensor | None:
        """[R, 1, 1, M] what to add to the key logits, or None."""
        if log_size is None:
            return None
        token = log_size.stride(0)
        size = (self.segments, self.groups, self.tokens)
        stride = (self.stride * token, token, self.ratio * token)
        first = log_size.storage_offset() + (self.start + self.group) * token
        sizes = log_size.as_strided(size, stride, first)
        return sizes.flatten(0, 1)[:, None, None]

    def put(self, total: Tensor, rows: Tensor) -> None:
        self._window(total).copy_(self._segments(rows))

    def add(self, total: Tensor, rows: Tensor) -> None:
        self._window(total).add_(self._segments(rows))

    def mix(self, out: Tensor, lse: Tensor, rows: Tensor, rows_lse: Tensor) -> None:
        """Let the softmaxes behind `out` [T, H, d] and `lse` [T, H] see these rows' keys too."""
        mix(self._window(out), self._window(lse), self._segments(rows), self._segments(rows_lse))

    def _window(self, x: Tensor) -> Tensor:
        """View [segments, groups, M, h, ...] of x [T, H, ...]."""
        token, head, *rest = x.stride()
        group = token + self.group_heads * head  # the next group: one token on, and its own heads
        size = (self.segments, self.groups, self.tokens, self.heads, *x.shape[2:])
        stride = (self.stride * token, group, self.ratio * token, head, *rest)
        return x.as_strided(size, stride, x.storage_offset() + self.start * token + self.group * group)

    def _segments(self, rows: Tensor) -> Tensor:
        return rows.transpose(1, 2).unflatten(0, (self.segments, self.groups))


@dataclass(frozen=True)
class GatheredRows:
    """R rows of at most M tokens, anywhere.

    Short rows are filled up: with their last token where inputs are read (a mask hides it from the
    queries), with a spare token T in our own tensors, where its results end and its gradient is zero.

    source  [R M h / unit] int64: rows of an input seen as [..., unit d]; `unit` heads move together
    index   the same of a tensor [T + 1, H, ...] of ours
    tokens  [R, M] int64; T is the spare one
    mask    [R, 1, 1, M] fp32, -inf on spare tokens, else 0; None where no row is short
    whole   as in StridedRows; zeros [R, 1, 1]
    """

    source: Tensor
    index: Tensor
    unit: int
    heads: int
    tokens: Tensor
    mask: Tensor | None
    whole: bool
    zeros: Tensor | None

    spare = 1

    def take(self, x: Tensor) -> Tensor:
        """x [T, H, d] must have the strides (pitch d, d, 1) that the plan was made for."""
        width = self.unit * x.shape[2]
        count = ((len(x) - 1) * x.stride(0) + x.shape[1] * x.shape[2]) // width
        return self._rows(x.as_strided((count, width), (width, 1)).index_select(0, self.source), x)

    def take_total(self, x: Tensor) -> Tensor:
        return self._rows(self._units(x).index_select(0, self.index), x)

    def bias(self, log_size: Tensor | None) -> Tensor | None:
        if log_size is None:
            return self.mask
        return torch.cat((log_size, log_size.new_full((1,), -torch.inf)))[self.tokens][:, None, None]

    def put(self, total: Tensor, rows: Tensor) -> None:
        self._units(total).index_copy_(0, self.index, self._flat(rows))

    def add(self, total: Tensor, rows: Tensor) -> None:
        self._units(total).index_add_(0, self.index, self._flat(rows))

    def mix(self, out: Tensor, lse: Tensor, rows: Tensor, rows_lse: Tensor) -> None:
        own, own_lse = self.take_total(out), self.take_total(lse)
        mix(own, own_lse, rows, rows_lse)
        self.put(out, own)
        self.put(lse, own_lse)

    def _units(self, x: Tensor) -> Tensor:
        """[(T + 1) H / unit, unit ...] view of x [T + 1, H, ...]"""
        return x.view(x.shape[0] * x.shape[1] // self.unit, -1)

    def _rows(self, flat: Tensor, like: Tensor) -> Tensor:
        return flat.view(*self.tokens.shape, self.heads, *like.shape[2:]).transpose(1, 2)

    def _flat(self, rows: Tensor) -> Tensor:
        return rows.transpose(1, 2).reshape(len(self.index), -1)


Rows = StridedRows | GatheredRows


def mix(out: Tensor, lse: Tensor, new: Tensor, new_lse: Tensor) -> None:
    """Join two softmaxes over different keys, in place: out [..., d], lse [...] become those over both."""
    out.lerp_(new, torch.sigmoid(new_lse - lse).unsqueeze(-1).to(out.dtype))
    lse.copy_(torch.logaddexp(lse, new_lse))


@lru_cache(maxsize=32)
def plan_rows(
    lengths: tuple[int, ...],
    segments: tuple[int, ...],
    ratios: tuple[int, ...],
    heads: int,
    pitch: int,
    device: torch.device,
) -> tuple[Rows, ...]:
    """Rows of all branches, a branch of ratio 1 first where there is one: it fills every (token, head).

    pitch: from one token of the inputs to the next, in heads; it matters to several slides only.
    """
    branches = sorted(zip(segments, ratios, strict=True), key=lambda branch: branch[1])
    plan: list[Rows] = []
    for number, (segment, ratio) in enumerate(branches):
        whole = ratio == 1 and number == 0
        if len(lengths) == 1:
            plan += _strided(lengths[0], segment, ratio, heads, whole, device)
        else:
            plan += _gathered(np.asarray(lengths), segment, ratio, heads, pitch, whole, device)
    return tuple(plan)


def _strided(
    length: int, segment: int, ratio: int, heads: int, whole: bool, device: torch.device
) -> list[StridedRows]:
    """Full segments, then the ragged tail; head groups that see equally many tokens stand together."""
    segment = min(segment, length)
    full, tail = divmod(length, segment)
    group_heads = -(-heads // ratio)
    plan = []
    for start, count, size in ((0, full, segment), (full * segment, 1, tail)):
        alike: dict[tuple[int, int], list[int]] = {}
        for group in range(min(-(-heads // group_heads), size)):
            members = min(group_heads, heads - group * group_heads)
            alike.setdefault((-(-(size - group) // ratio), members), []).append(group)
        for (tokens, members), groups in alike.items():
            missing = -(-segment // ratio) - tokens
            step = max(1, CALL_ROWS.get(device.type, CALL_ROWS["cuda"]) // (tokens * members * len(groups)))
            plan += [
                StridedRows(
                    start=start + first * segment,
                    segments=min(step, count - first),
                    stride=segment,
                    ratio=ratio,
                    group=groups[0],
                    groups=len(groups),
                    group_heads=group_heads,
                    heads=members,
                    tokens=tokens,
                    whole=whole,
                    zeros=torch.tensor(missing, device=device) if missing else None,
                )
                for first in range(0, count, step)
            ]
    return plan


def _gathered(
    lengths: np.ndarray,
    segment: int,
    ratio: int,
    heads: int,
    pitch: int,
    whole: bool,
    device: torch.device,
) -> list[GatheredRows]:
    """Rows of equal h and similar M in one call."""
    total = int(lengths.sum())
    group_heads = -(-heads // ratio)
    sizes = np.minimum(segment, lengths)
    counts = -(-lengths // sizes)
    # per segment: its slide, where it begins, how long it is
    slide = np.repeat(np.arange(len(lengths)), counts)
    offset = (np.arange(len(slide)) - np.repeat(np.cumsum(counts) - counts, counts)) * sizes[slide]
    begin = (np.cumsum(lengths) - lengths)[slide] + offset
    size = np.minimum(sizes[slide], lengths[slide] - offset)
    # per row: its segment, its head group, how many tokens and heads it has, how many tokens it lacks
    seen = -(-(size[:, None] - np.arange(-(-heads // group_heads))) // ratio)
    of, group = np.nonzero(seen > 0)
    tokens = seen[of, group]
    members = np.minimum(group_heads, heads - group * group_heads)
    missing = -(-sizes[slide[of]] // ratio) - tokens

    def tensor(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(device)

    unit = group_heads if heads % group_heads == 0 else 1
    plan = []
    for rows in _calls(tokens, members):
        longest = int(tokens[rows].max())
        step = np.arange(longest if (tokens[rows] == longest).all() else -(-longest // LANES) * LANES)
        short = step >= tokens[rows, None]
        token = begin[of[rows], None] + group[rows, None] + ratio * np.minimum(step, tokens[rows, None] - 1)
        width = int(members[rows[0]])
        head = group[rows, None, None] * group_heads + np.arange(0, width, unit)

        def rows_of(token: np.ndarray, pitch: int, head: np.ndarray = head) -> Tensor:
            return tensor(((token[:, :, None] * pitch + head) // unit).ravel())

        ours = np.where(short, total, token)
        plan.append(
            GatheredRows(
                source=rows_of(token, pitch),
                index=rows_of(ours, heads),
                unit=unit,
                heads=width,
                tokens=tensor(ours),
                mask=tensor(np.where(short, -np.inf, 0).astype(np.float32))[:, None, None]
                if short.any()
                else None,
                whole=whole,
                zeros=tensor(missing[rows])[:, None, None] if missing[rows].any() else None,
            )
        )
    return plan


def _calls(tokens: np.ndarray, members: np.ndarray) -> list[np.ndarray]:
    """Row numbers of each kernel call: as many heads in each row, and similar numbers of tokens.

    Rows fall into classes of length; a class joins the next longer one where filling its rows up,
    and masking rows that needed none, costs less than a call.
    """
    calls = []
    for heads in np.unique(members):
        mine = np.nonzero(members == heads)[0]
        longest = tokens[mine].max()
        group = CALLS * tokens[mine] // longest  # the full rows are a class of their own
        waiting = mine[:0]
        for number in np.unique(group):
            rows = mine[group == number]
            if len(waiting):
                top = tokens[rows].max()
                filling = len(waiting) * (top**2 - tokens[waiting].max() ** 2)
                masking = len(rows) * top**2 * MASK_COST if tokens[rows].min() == top else 0
                if heads * (filling + masking) > CALL_COST:
                    calls.append(waiting)
                else:
                    rows = np.concatenate((waiting, rows))
            waiting = rows
        calls.append(waiting)
    return calls
