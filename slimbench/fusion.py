"""Last-layer fusion: dropped tokens come back before the last block.

Source: Cropr (Bergner et al., arXiv 2412.00965): no module stands before the last block, which attends over all
tokens again, the kept ones as the blocks made them and the dropped ones as they were when they were dropped.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from slimbench.tokens import Tokens


def fused(kept: Tokens, dropped: Sequence[Tokens]) -> tuple[Tokens, Tensor]:
    """(the tokens of a slide in raster order, the row of each in `kept` followed by all of `dropped`).

    Each token stands at its patch (Tokens.origin), a made one right behind the token before it. Members of
    a merged token are in it and were not dropped, so nothing of a merger comes back.

    >>> slide = Tokens.of(torch.arange(5.0).unsqueeze(1))
    >>> tokens, rows = fused(slide.take(torch.tensor([1, 4])), [slide.take(torch.tensor([0, 2, 3]))])
    >>> tokens.origin.tolist(), rows.tolist()
    ([0, 1, 2, 3, 4], [2, 0, 3, 4, 1])
    """
    parts = (kept, *dropped)
    place = torch.cat([_place(part.origin) for part in parts])
    rows = torch.argsort(place, stable=True)
    return Tokens.cat(parts).take(rows), rows


def _place(origin: Tensor) -> Tensor:
    """Where tokens stand: at their origin, a made one (-1) at the furthest of those before it."""
    if not len(origin):
        return origin
    return torch.where(origin >= 0, origin, origin.cummax(0).values)
