"""Which rows of a slide dilated attention lets a set of rows, such as [CLS] alone, learn from.

Segments start at row 0 in every branch, so rows behind the longest segment never meet row 0, at any depth.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


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
