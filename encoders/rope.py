"""Rotary positions in two dimensions (RoFormer, arXiv 2104.09864, one half of the pairs per axis).

Channel pairs (2i, 2i + 1) of a head are rotated by position * base ** (-i / n), the first half of the
pairs by x, the second by y. A [CLS] row has coordinates (0, 0) and is therefore not rotated.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rotations(coords: Tensor, head_dim: int, base: float) -> Tensor:
    """coords [T, 2] fp32 grid units -> [T, head_dim / 2] complex64 unit numbers. head_dim % 4 == 0."""
    per_axis = head_dim // 4
    steps = torch.arange(per_axis, dtype=torch.float32, device=coords.device)
    frequencies = base ** (-steps / per_axis)
    angles = (coords.float().unsqueeze(2) * frequencies).flatten(1)
    return torch.polar(torch.ones_like(angles), angles)


def rotate(x: Tensor, by: Tensor) -> Tensor:
    """x [T, H, d] rotated by `by` [T, d / 2]; differentiable, computed in fp32, returned in x's dtype."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * by.unsqueeze(1)).flatten(-2).to(x.dtype)


def rotate_(x: Tensor, by: Tensor) -> None:
    """`rotate` in place (inference)."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2))).mul_(by.unsqueeze(1))
    if x.dtype != torch.float32:  # else `pairs` is x itself
        x.copy_(torch.view_as_real(pairs).flatten(-2))
