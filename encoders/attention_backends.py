"""Attention kernels that also return their log-sum-exp, and the table that picks one.

A kernel attends within each of R independent rows: q, k, v are [R, h, M, d], `bias` [R, 1, 1, M] or None
is added to the logits of the keys (-inf hides one, never all of a row), and logits are scaled by
d**-0.5. Forward gives out [R, h, M, d] and lse [R, h, M] in fp32 (fp64 for fp64); backward takes the
gradient of out, q, k, v, out, lse, bias and gives the gradients of q, k, v.

Handed the `out` and `lse` of a softmax over MORE keys than the row's, a flash backward gives this row's
share of the gradient exactly: p = exp(logit - lse) and sum(grad * out) are all it takes from them.
lse = +inf makes p zero, which takes a query out of the sum.

    row             device  dtypes                  needs                            run on hardware here
    cpu-flash       CPU     fp64, fp32, bf16, fp16  -                                yes
    cuda-flash      CUDA    bf16, fp16              compute capability 8.0           no
    cuda-efficient  CUDA    fp32, bf16, fp16        compute capability 8.0 for bf16  no
    plain           any     any                     memory for [R, h, M, M]          yes

The CUDA rows were written from the signatures and sources of torch's operators; their tests run where a
GPU is found. cuDNN and varlen kernels are left out: the shape of the log-sum-exp that they take back
changed between the torch versions supported here, and full and ragged rows need no varlen call.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

aten = torch.ops.aten

Grads = tuple[Tensor, Tensor, Tensor]
Forward = Callable[[Tensor, Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]
Backward = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None], Grads]

HALF = (torch.bfloat16, torch.float16)
LONG_ROW = 768  # from here on torch's CPU kernel works in blocks large enough for bf16 products to pay
CPU_FLASH = "torch's one CPU kernel that returns the log-sum-exp"
HIDDEN = -30_000.0  # stands for -inf in a channel: finite in fp16, and exp(HIDDEN / sqrt(d)) is 0


@dataclass(frozen=True)
class Backend:
    """A kernel, and why this one; `name` is a row of the table above."""

    name: str
    reason: str
    forward: Forward
    backward: Backward

    def __str__(self) -> str:
        return f"{self.name} ({self.reason})"


@lru_cache
def backend(device: torch.device, dtype: torch.dtype) -> Backend:
    """The kernel for tensors of `dtype` on `device`: the first row of the table that can take them."""
    if device.type in ("cpu", "meta"):
        if dtype not in HALF:
            return Backend("cpu-flash", CPU_FLASH, cpu_flash, cpu_flash_backward)
        if dtype is torch.bfloat16 and _has_bf16_products():
            why = f"{CPU_FLASH}; backward in fp32 where rows have under {LONG_ROW} tokens"
            return Backend("cpu-flash", why, cpu_flash, _cpu_flash_backward_bf16)
        why = f"{CPU_FLASH}; in fp32, as this CPU multiplies {dtype} slower"
        return Backend("cpu-flash", why, _cpu_flash_fp32, _cpu_flash_backward_fp32)
    if device.type != "cuda":
        return Backend("plain", f"no fused kernel for {device.type}", plain, plain_backward)
    if torch.version.hip is not None:
        return Backend("plain", "the fused kernels were written for CUDA, not ROCm", plain, plain_backward)
    if dtype is torch.float64:
        return Backend("plain", "no fused kernel for fp64", plain, plain_backward)
    capability = torch.cuda.get_device_capability(device)
    if dtype is torch.float32:
        return Backend("cuda-efficient", "flash takes no fp32", cuda_efficient, cuda_efficient_backward)
    if capability < (8, 0):
        why = f"flash needs compute capability 8.0, this GPU has {capability[0]}.{capability[1]}"
        if dtype is torch.bfloat16:
            return Backend("plain", f"{why}, and so does bf16", plain, plain_backward)
        return Backend("cuda-efficient", why, cuda_efficient, cuda_efficient_backward)
    if not torch.backends.cuda.is_flash_attention_available():
        why = "this torch was built without flash attention"
        return Backend("cuda-efficient", why, cuda_efficient, cuda_efficient_backward)
    return Backend("cuda-flash", "torch's CUDA flash operator", cuda_flash, cuda_flash_backward)


def _has_bf16_products() -> bool:
    ask = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return ask is not None and bool(ask())


def plain(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Matrix products and a softmax in at least fp32."""
    with torch.autocast(q.device.type, enabled=False):
        logits = _logits(q, k, bias)
        lse = logits.logsumexp(-1)
        return ((logits - lse.unsqueeze(-1)).exp() @ v.to(lse.dtype)).to(q.dtype), lse


def plain_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, bias: Tensor | None
) -> Grads:
    with torch.autocast(q.device.type, enabled=False):
        p = (_logits(q, k, bias) - lse.unsqueeze(-1)).exp()
        grad, q_, k_, v_, out = (x.to(p.dtype) for x in (grad, q, k, v, out))
        ds = p * (grad @ v_.mT - (grad * out).sum(-1, keepdim=True)) * q.shape[-1] ** -0.5
        return (ds @ k_).to(q.dtype), (ds.mT @ q_).to(q.dtype), (p.mT @ grad).to(q.dtype)


def _logits(q: Tensor, k: Tensor, bias: Tensor | None) -> Tensor:
    wide = torch.promote_types(q.dtype, torch.float32)
    logits = q.to(wide) @ k.to(wide).mT * q.shape[-1] ** -0.5
    return logits if bias is None else logits + bias.to(wide)


def cpu_flash(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Reads any strides whose last is 1, and a broadcast bias at no cost."""
    out, lse = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, attn_mask=_wide(bias, q))
    return out, lse


def cpu_flash_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, bias: Tensor | None
) -> Grads:
    dq, dk, dv = aten._scaled_dot_product_flash_attention_for_cpu_backward(
        grad, q, k, v, out, lse, 0.0, False, attn_mask=_wide(bias, q)
    )
    return dq, dk, dv


def _wide(bias: Tensor | None, q: Tensor) -> Tensor | None:
    return None if bias is None else bias.to(torch.promote_types(q.dtype, torch.float32))


def _cpu_flash_fp32(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    out, lse = cpu_flash(q.float(), k.float(), v.float(), bias)
    return out.to(q.dtype), lse


def _cpu_flash_backward_fp32(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, bias: Tensor | None
) -> Grads:
    dq, dk, dv = cpu_flash_backward(grad.float(), q.float(), k.float(), v.float(), out.float(), lse, bias)
    return dq.to(q.dtype), dk.to(q.dtype), dv.to(q.dtype)


def _cpu_flash_backward_bf16(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, bias: Tensor | None
) -> Grads:
    run = cpu_flash_backward if q.shape[2] >= LONG_ROW else _cpu_flash_backward_fp32
    return run(grad, q, k, v, out, lse, bias)


def cuda_flash(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Not run on hardware here."""
    q_, k_, v_ = widened(q, k, v, bias)
    out, lse, *_ = aten._scaled_dot_product_flash_attention(q_, k_, v_, scale=q.shape[-1] ** -0.5)
    return out[..., : q.shape[-1]], lse


def cuda_flash_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, bias: Tensor | None
) -> Grads:
    """Not run on hardware here."""
    d, rows = q.shape[-1], q.shape[2]
    q_, k_, v_ = widened(q, k, v, bias)
    grad, out = (_packed(F.pad(x, (0, q_.shape[-1] - d))) for x in (grad, out))
    unused = lse.new_empty(0, dtype=torch.int64)  # dropout's random state
    grads = aten._scaled_dot_product_flash_attention_backward(
        grad, q_, k_, v_, out, lse.contiguous(), None, None, rows, rows, 0.0, False, unused, unused,
        scale=d**-0.5,
    )  # fmt: skip
    dq, dk, dv = (x[..., :d] for x in grads)
    return dq, dk, dv


def cuda_efficient(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Not run on hardware here. The operator rounds the length of its lse up to a multiple of 32."""
    q_, k_, v_ = widened(q, k, v, bias)
    out, lse, *_ = aten._scaled_dot_product_efficient_attention(
        q_, k_, v_, None, True, scale=q.shape[-1] ** -0.5
    )
    return out[..., : q.shape[-1]], lse[..., : q.shape[2]]


def cuda_efficient_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, bias: Tensor | None
) -> Grads:
    """Not run on hardware here. The kernel reads lse in blocks of 32 queries and wants +inf behind the last."""
    d = q.shape[-1]
    q_, k_, v_ = widened(q, k, v, bias)
    grad, out = (_packed(F.pad(x, (0, q_.shape[-1] - d))) for x in (grad, out))
    lse = F.pad(lse, (0, -lse.shape[-1] % 32), value=torch.inf).contiguous()
    unused = lse.new_empty(0, dtype=torch.int64)  # dropout's random state
    grads = aten._scaled_dot_product_efficient_attention_backward(
        grad, q_, k_, v_, None, out, lse, unused, unused, 0.0, [True, True, True, False], scale=d**-0.5
    )
    dq, dk, dv = (x[..., :d] for x in grads[:3])
    return dq, dk, dv


def widened(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Grads:
    """q, k, v [R, h, M, d] with zero channels up to a multiple of 8; two of them carry the bias.

    q holds 1 in both, k the bias over the scale, as what the dtype can say of it and what is left: so
    log sizes keep their precision in bf16. Without a bias and with d a multiple of 8, nothing is copied.
    """
    d = q.shape[-1]
    extra = -d % 8 if bias is None else 2 + -(d + 2) % 8
    if extra == 0:
        return q, k, v
    q, k, v = (F.pad(x, (0, extra)) for x in (q, k, v))
    if bias is not None:
        key = (bias.mT.float() * d**0.5).clamp_min(HIDDEN)
        high = key.to(k.dtype)
        q[..., d : d + 2] = 1
        k[..., d : d + 1] = high
        k[..., d + 1 : d + 2] = key - high.float()
    return q, k, v


def _packed(x: Tensor) -> Tensor:
    """[R, h, M, d] laid out as [R, M, h, d], which the kernels take for granted in out and its gradient."""
    return x.transpose(1, 2).contiguous().transpose(1, 2)
