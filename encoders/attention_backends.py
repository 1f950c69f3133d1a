"""Attention kernels that also return their log-sum-exp, and the table that picks one.

A kernel attends within each of R independent rows: q, k, v are [R, h, M, d], `bias` is None or
[R, 1, 1, M], added to the key logits (-inf hides a key; a row hides never all of them), and logits are
scaled by d**-0.5. `forward` gives (out [R, h, M, d], lse [R, h, M] in fp32, fp64 for fp64), `backward`
(grad_q, grad_k, grad_v). Handed an `out` and `lse` of a softmax over MORE keys than the row's, a flash
backward gives exactly this row's share of the gradient: p = exp(logit - lse) and sum(grad_out * out) are
all it reads from them.

    table row     device  dtypes                run on hardware here
    cpu-flash     CPU     fp64 fp32 bf16 fp16   yes
    cuda-flash    CUDA    bf16 fp16             no: written from torch's operator signatures
    cuda-cudnn    CUDA    bf16 fp16             no: written from torch's operator signatures
    cuda-efficient CUDA   fp32 bf16 fp16        no: written from torch's operator signatures
    plain         any     any                   yes
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

aten = torch.ops.aten

Forward = Callable[[Tensor, Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]
Backward = Callable[
    [Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor, Tensor]
]


@dataclass(frozen=True)
class Backend:
    """A kernel and why it was picked; `name` is a row of the table in the module's docstring."""

    name: str
    reason: str
    forward: Forward
    backward: Backward


def backend(device: torch.device | str, dtype: torch.dtype) -> Backend:
    """The fastest kernel for `dtype` on `device`: the first row of the table that is there."""
    device = torch.device(device)
    if device.type == "cpu" and hasattr(aten, "_scaled_dot_product_flash_attention_for_cpu_backward"):
        return Backend("cpu-flash", "torch has the CPU flash operator", cpu_flash, cpu_flash_backward)
    return Backend("plain", f"no fused kernel for {dtype} on {device.type}", plain, plain_backward)


def plain(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Matrix products and a softmax; holds [R, h, M, M] logits."""
    logits = _logits(q, k, bias)
    lse = logits.logsumexp(-1)
    return ((logits - lse.unsqueeze(-1)).exp() @ v.to(logits.dtype)).to(q.dtype), lse


def plain_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    p = (_logits(q, k, bias) - lse.unsqueeze(-1)).exp()
    g, q_, k_, v_, out_ = (x.to(p.dtype) for x in (grad, q, k, v, out))
    ds = p * (g @ v_.mT - (g * out_).sum(-1, keepdim=True)) * q.shape[-1] ** -0.5
    return (ds @ k_).to(q.dtype), (ds.mT @ q_).to(k.dtype), (p.mT @ g).to(v.dtype)


def _logits(q: Tensor, k: Tensor, bias: Tensor | None) -> Tensor:
    wide = torch.promote_types(q.dtype, torch.float32)
    logits = q.to(wide) @ k.to(wide).mT * q.shape[-1] ** -0.5
    return logits if bias is None else logits + bias.to(wide)


def cpu_flash(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Reads any strides whose last is 1; a broadcast bias costs nothing."""
    out, lse = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, attn_mask=_wide(bias, q))
    return out, lse


def cpu_flash_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    grads = aten._scaled_dot_product_flash_attention_for_cpu_backward(
        grad, q, k, v, out, lse, 0.0, False, attn_mask=_wide(bias, q)
    )
    return grads


def _wide(bias: Tensor | None, q: Tensor) -> Tensor | None:
    return None if bias is None else bias.to(torch.promote_types(q.dtype, torch.float32))
