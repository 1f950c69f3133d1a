"""Which rows of a slide dilated attention lets row 0, its [CLS], learn from.

Segments start at row 0 in every branch, so rows behind the longest segment never meet row 0, at any depth.

    >>> shares = reach(17_183, (1024, 2048, 4096, 8192, 16384), (1, 2, 4, 8, 16), heads=16, layers=3)
    >>> [round(share, 3) for share in shares]
    [0.179, 0.953, 0.953]
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def direct_reach(length: int, segments: Sequence[int], ratios: Sequence[int], heads: int) -> Tensor:
    """[length] bool: the rows that row 0 attends to in any head of any branch, itself among them."""
    first = torch.zeros(length, dtype=torch.bool)
    first[0] = True
    return attended(first, segments, ratios, heads)


def reach(
    length: int, segments: Sequence[int], ratios: Sequence[int], heads: int, layers: int
) -> tuple[float, ...]:
    """Shares of the other rows whose content can be in row 0 after 1, 2, ..., `layers` layers.

    Between layers all heads mix, so a row that is reached brings along all it attends to itself. 1 where
    there are no other rows.
    """
    reached = torch.zeros(length, dtype=torch.bool)
    reached[0] = True
    shares: list[float] = []
    for layer in range(layers):
        if layer < 2 or shares[-1] > shares[-2]:  # what brought nothing new once never will
            reached = attended(reached, segments, ratios, heads)
        shares.append((int(reached.sum()) - 1) / (length - 1) if length > 1 else 1.0)
    return tuple(shares)


def attended(rows: Tensor, segments: Sequence[int], ratios: Sequence[int], heads: int) -> Tensor:
    """[L] bool: `rows` and all that they attend to."""
    position = torch.arange(len(rows))
    found = rows.clone()
    for segment, ratio in zip(segments, ratios, strict=True):
        segment = min(segment, len(rows))
        offset = position % segment % ratio
        groups = -(-heads // -(-heads // ratio))
        meeting = position // segment * ratio + offset  # rows of equal number attend to each other
        active = torch.zeros(int(meeting.max()) + 1, dtype=torch.bool)
        active[meeting[rows & (offset < groups)]] = True
        found |= active[meeting]
    return found
