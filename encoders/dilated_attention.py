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
    lengths = (q.shape[0],) if lengths is None else lengths
    if sum(lengths) != q.shape[0] or min(lengths) < 1:
        raise UsageError(f"lengths {lengths} must be positive and sum to the {q.shape[0]} tokens of q")
    if padding not in MODES or gradient not in MODES:
        raise UsageError(f"padding {padding!r}, gradient {gradient!r}: each must be one of {MODES}")
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    plan = plan_rows(tuple(lengths), tuple(segments), tuple(ratios), q.shape[1], q.device)
    kernel = backend(q.device, q.dtype)
    return _DilatedAttention.apply(
        q, k, v, log_size, plan, kernel, padding == "torchscale", gradient == "torchscale"
    )


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
        whole = plan[0].whole
        out = (torch.empty if whole else torch.zeros)(q.shape, dtype=q.dtype, device=q.device)
        wide = torch.promote_types(q.dtype, torch.float32)
        lse = torch.full(q.shape[:2], -torch.inf, dtype=wide, device=q.device)
        for rows in plan:
            outs, lses = _attend(rows, q, k, v, log_size, kernel, zero_keys)
            if rows.whole:
                rows.put(out, outs)
                rows.put(lse, lses)
            else:
                rows.merge(out, lse, outs, lses)
        ctx.save_for_backward(q, k, v, out, lse, log_size)
        ctx.plan, ctx.kernel, ctx.zero_keys, ctx.fixed_weights = plan, kernel, zero_keys, fixed_weights
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse, log_size = ctx.saved_tensors
        whole = ctx.plan[0].whole
        grads = [
            (torch.empty if whole else torch.zeros)(q.shape, dtype=q.dtype, device=q.device) for _ in "qkv"
        ]
        grad = grad.contiguous()
        for rows in ctx.plan:
            gs = rows.take_grad(grad)
            if ctx.fixed_weights:
                outs, lses = _attend(rows, q, k, v, log_size, ctx.kernel, ctx.zero_keys)
                weights = [(own - total).exp() for own, total in zip(lses, rows.take(lse), strict=True)]
                gs = tuple(g * w.unsqueeze(-1).to(g.dtype) for g, w in zip(gs, weights, strict=True))
            else:
                outs, lses = rows.take(out), rows.take(lse)
            calls = zip(
                gs, rows.take(q), rows.take(k), rows.take(v), outs, lses, rows.biases(log_size), strict=True
            )
            for total, part in zip(
                grads, zip(*(ctx.kernel.backward(*call) for call in calls), strict=True), strict=True
            ):
                (rows.put if rows.whole else rows.add)(total, part)
        needed = zip(grads, ctx.needs_input_grad, strict=False)
        return (*(x if wanted else None for x, wanted in needed), None, None, None, None, None)


def _attend(
    rows: Rows, q: Tensor, k: Tensor, v: Tensor, log_size: Tensor | None, kernel: Backend, zero_keys: bool
) -> tuple[list[Tensor], list[Tensor]]:
    """Output and log-sum-exp of each kernel call of these rows."""
    outs, lses = [], []
    calls = zip(rows.take(q), rows.take(k), rows.take(v), rows.biases(log_size), rows.zeros, strict=True)
    for q_rows, k_rows, v_rows, bias, zeros in calls:
        out, lse = kernel.forward(q_rows, k_rows, v_rows, bias)
        if zero_keys and zeros is not None:
            # n keys with logit 0 and value 0: e^lse grows by n, the sum of values does not
            with_zeros = torch.logaddexp(lse, zeros.to(lse.dtype).log())
            out = out * (lse - with_zeros).exp().unsqueeze(-1).to(out.dtype)
            lse = with_zeros
        outs.append(out)
        lses.append(lse)
    return outs, lses


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
