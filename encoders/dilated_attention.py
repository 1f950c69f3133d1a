"""LongNet's dilated attention (arXiv 2307.02486), exact and without padding.

Each branch (segment s, ratio r) attends inside segments of s tokens among every r-th token, heads being
spread over the r offsets; the branches join in one softmax over all keys seen, counted as often as they
are seen. Semantics as in torchscale's LongNet, checked against `dilated_attention_reference`.

    >>> import torch
    >>> q, k, v = torch.randn(3, 100, 4, 8)
    >>> dilated_attention(q, k, v, segments=(16, 64), ratios=(1, 4)).shape
    torch.Size([100, 4, 8])
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from slimbench.encoders.attention_backends import Backend, backend
from slimbench.encoders.attention_rows import Rows, plan_rows
from slimbench.errors import UsageError

Mode = Literal["exact", "torchscale"]
MODES = ("exact", "torchscale")


def check_branches(segments: Sequence[int], ratios: Sequence[int]) -> None:
    """Raise UsageError unless every branch has a segment and a ratio and the ratio divides the segment.

    torchscale shifts its outputs by a few rows from the second segment on where it does not.
    """
    if len(segments) != len(ratios) or not segments:
        raise UsageError(
            f"{len(segments)} segments and {len(ratios)} ratios; a branch is one of each, and at least one is needed"
        )
    for segment, ratio in zip(segments, ratios, strict=True):
        if ratio < 1 or segment < 1 or segment % ratio:
            raise UsageError(
                f"segment {segment} with ratio {ratio}: both must be positive and the ratio must divide the "
                f"segment; try {max(segment // max(ratio, 1), 1) * max(ratio, 1)}"
            )


def dilated_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    segments: Sequence[int],
    ratios: Sequence[int],
    *,
    lengths: tuple[int, ...] | None = None,
    log_size: Tensor | None = None,
    padding: Mode = "exact",
    gradient: Mode = "exact",
) -> Tensor:
    """Dilated attention of one slide, or of several packed end to end: [T, H, d] in the input's dtype.

    q, k, v   [T, H, d] fp64, fp32, bf16 or fp16; any strides (views of a fused [T, 3, H, d] cost no copy)
    lengths   tokens of each slide, in order, summing to T; None: one slide
    log_size  [T] added to the logits of each key (proportional attention, ToMe, arXiv 2210.09461); it
              gets no gradient
    padding   "exact": absent tokens are absent; "torchscale": ragged segments hold the unmasked zero keys
              of torchscale's LongNet (for checkpoints trained with it), in closed form
    gradient  "exact", or "torchscale": the branches' weights count as constants, as torchscale's do

    A (token, head) that no branch sees gets 0. Saves q, k, v, the output and one log-sum-exp for the
    backward pass. Raises UsageError for shapes, dtypes or lengths that do not fit; branches are checked
    once, by `check_branches`.
    """
    if q.dim() != 3 or q.shape != k.shape or q.shape != v.shape or not q.dtype == k.dtype == v.dtype:
        raise UsageError(
            f"q {tuple(q.shape)} {q.dtype}, k {tuple(k.shape)} {k.dtype}, v {tuple(v.shape)} {v.dtype}: "
            "expected three tensors [tokens, heads, width] of one shape and dtype"
        )
    lengths = (q.shape[0],) if lengths is None else tuple(lengths)
    if sum(lengths) != q.shape[0] or min(lengths) < 1:
        raise UsageError(f"lengths {lengths} must be positive and sum to the {q.shape[0]} tokens of q")
    if padding not in MODES or gradient not in MODES:
        raise UsageError(f"padding {padding!r}, gradient {gradient!r}: each must be one of {MODES}")
    heads, width = q.shape[1:]
    pitch = heads
    if len(lengths) == 1:
        q, k, v = (x if x.stride(2) == 1 else x.contiguous() for x in (q, k, v))
    else:
        pitch = q.stride(0) // width
        if pitch % heads or any(x.stride() != (pitch * width, width, 1) for x in (q, k, v)):
            q, k, v, pitch = q.contiguous(), k.contiguous(), v.contiguous(), heads
    plan = plan_rows(lengths, tuple(segments), tuple(ratios), heads, pitch, q.device)
    kernel, zero_keys = backend(q.device, q.dtype), padding == "torchscale"
    if not torch.is_grad_enabled():  # torch.jit, which fvcore counts with, cannot look into a Function
        return _joined(q, k, v, log_size, plan, kernel, zero_keys)[0][: len(q)]
    out: Tensor = _DilatedAttention.apply(
        q, k, v, log_size, plan, kernel, zero_keys, gradient == "torchscale"
    )
    return out


class _DilatedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        log_size: Tensor | None,
        plan: tuple[Rows, ...],
        kernel: Backend,
        zero_keys: bool,
        fixed_weights: bool,
    ) -> Tensor:
        out, lse = _joined(q, k, v, log_size, plan, kernel, zero_keys)
        if plan[0].spare:
            out[-1], lse[-1] = 0, torch.inf  # what stands in short rows gets no gradient: p = exp(x - inf)
        ctx.save_for_backward(q, k, v, out, lse, log_size)
        ctx.plan, ctx.kernel, ctx.zero_keys, ctx.fixed_weights = plan, kernel, zero_keys, fixed_weights
        return out[: len(q)]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse, log_size = ctx.saved_tensors
        plan, count = ctx.plan, len(q)
        grad = torch.cat((grad, grad.new_zeros(1, *grad.shape[1:]))) if plan[0].spare else grad.contiguous()
        grads = [_total(q, plan) for _ in "qkv"]
        for rows in plan:
            row_q, row_k, row_v = rows.take(q), rows.take(k), rows.take(v)
            row_grad, row_lse = rows.take_total(grad), rows.take_total(lse)
            if ctx.fixed_weights:
                total_lse = row_lse
                row_out, row_lse = _attend(rows, row_q, row_k, row_v, log_size, ctx.kernel, ctx.zero_keys)
                row_grad = row_grad * (row_lse - total_lse).exp().unsqueeze(-1).to(grad.dtype)
            else:
                row_out = rows.take_total(out)
            parts = ctx.kernel.backward(row_grad, row_q, row_k, row_v, row_out, row_lse, rows.bias(log_size))
            for total, part in zip(grads, parts, strict=True):
                (rows.put if rows.whole else rows.add)(total, part)
        needed = zip(grads, ctx.needs_input_grad, strict=False)
        return (*(x[:count] if wanted else None for x, wanted in needed), *(None,) * 5)


def _joined(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_size: Tensor | None,
    plan: tuple[Rows, ...],
    kernel: Backend,
    zero_keys: bool,
) -> tuple[Tensor, Tensor]:
    """All branches in one softmax: output [T + spare, H, d] and log-sum-exp [T + spare, H]."""
    out = _total(q, plan)
    lse = out.new_full(out.shape[:2], -torch.inf, dtype=torch.promote_types(q.dtype, torch.float32))
    for rows in plan:
        new, new_lse = _attend(rows, rows.take(q), rows.take(k), rows.take(v), log_size, kernel, zero_keys)
        if rows.whole:
            rows.put(out, new)
            rows.put(lse, new_lse)
        else:
            rows.mix(out, lse, new, new_lse)
    return out, lse


def _total(q: Tensor, plan: tuple[Rows, ...]) -> Tensor:
    """[T + spare, H, d] for the sum over branches: zeros, unless the first branch fills it."""
    new = q.new_empty if plan[0].whole else q.new_zeros
    return new(len(q) + plan[0].spare, *q.shape[1:])


def _attend(
    rows: Rows, q: Tensor, k: Tensor, v: Tensor, log_size: Tensor | None, kernel: Backend, zero_keys: bool
) -> tuple[Tensor, Tensor]:
    """Output [R, h, M, d] and log-sum-exp [R, h, M] over the rows' own keys."""
    out, lse = kernel.forward(q, k, v, rows.bias(log_size))
    if zero_keys and rows.zeros is not None:
        # n keys with logit 0 and value 0: e^lse grows by n, the sum of values does not
        with_zeros = torch.logaddexp(lse, rows.zeros.to(lse.dtype).log())
        out = out * (lse - with_zeros).exp().unsqueeze(-1).to(out.dtype)
        lse = with_zeros
    return out, lse


def dilated_attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    segments: Sequence[int],
    ratios: Sequence[int],
    *,
    lengths: tuple[int, ...] | None = None,
    log_size: Tensor | None = None,
    padding: Mode = "exact",
    gradient: Mode = "exact",
) -> Tensor:
    """The same by dense [H, L, L] masks in float64, for tests: arguments of `dilated_attention`, float64 out.

    Differentiable by autograd alone; O(L^2) memory.
    """
    slides = []
    start = 0
    for length in lengths or (q.shape[0],):
        cut = slice(start, start + length)
        q_, k_, v_ = (x[cut].double().transpose(0, 1) for x in (q, k, v))
        logits = q_ @ k_.mT * q.shape[-1] ** -0.5
        if log_size is not None:
            logits = logits + log_size[cut].double()
        outs, lses = [], []
        for segment, ratio in zip(segments, ratios, strict=True):
            seen = visible(length, segment, ratio, q.shape[1]).to(q.device)
            masked = logits.masked_fill(~seen, -1e30)
            lse = masked.logsumexp(-1, keepdim=True)
            if padding == "torchscale":
                row = -(-min(segment, length) // ratio)
                zeros = (row - seen.sum(-1, keepdim=True)).where(seen.any(-1, keepdim=True), 0)
                lse = torch.logaddexp(lse, zeros.double().log())
            outs.append((masked - lse).exp().where(seen, 0) @ v_)
            lses.append(lse)
        weights = torch.stack(lses).softmax(0)
        if gradient == "torchscale":
            weights = weights.detach()
        slides.append((weights * torch.stack(outs)).sum(0).transpose(0, 1))
        start += length
    return torch.cat(slides)


def visible(length: int, segment: int, ratio: int, heads: int) -> Tensor:
    """[H, L, L] bool: whether one branch lets head h's query i see key j."""
    segment = min(segment, length)
    position = torch.arange(length)
    offset = (torch.arange(heads) // -(-heads // ratio))[:, None]
    member = position % segment % ratio == offset
    same = position[:, None] // segment == position // segment
    return member[:, :, None] & member[:, None, :] & same


def attended_pairs(
    length: int, segments: Sequence[int], ratios: Sequence[int], heads: int, padded: bool = False
) -> int:
    """(query, key, head) triples that the attention of one slide of `length` rows computes.

    A key that two branches share counts twice. padded: with the zero rows that torchscale appends to
    ragged segments, as queries and as keys. One such triple costs 2 d MAC (q k^T and p v).
    """
    pairs = 0
    for segment, ratio in zip(segments, ratios, strict=True):
        segment = min(segment, length)
        full, tail = divmod(length, segment)
        if padded:
            pairs += -(-length // segment) * heads * (-(-segment // ratio)) ** 2
            continue
        group_heads = -(-heads // ratio)
        for group in range(-(-heads // group_heads)):
            whole, rest = (-(-max(size - group, 0) // ratio) for size in (segment, tail))
            pairs += min(group_heads, heads - group * group_heads) * (full * whole**2 + rest**2)
    return pairs
