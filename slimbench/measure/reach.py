"""How much of a slide its [CLS] can know: which patches have a way into the embedding.

In dilated attention [CLS] reads few patches itself and the rest through others, block by block; rows behind
the longest segment never reach it, unless a reducer moves them forward. A path is no promise that anything
travels along it; a missing one is a promise that nothing does.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from slimbench.encoder import SlideEncoder
from slimbench.trace import Trace


def reach(encoder: SlideEncoder, trace: Trace, counts: Sequence[int]) -> tuple[float, ...] | None:
    """Shares of the slide's patches whose content can be in [CLS] after block 0, blocks 0 and 1, ... all.

    trace, counts  of one slide's pass: what each reducer did, and the tokens that entered each block

    The last share counts a merged patch as reached with its token, a dropped one if it was read before.
    None where the encoder does not state what its blocks read.
    """
    shares = []
    for last in range(len(counts)):
        found = reached(encoder, trace, counts, last)
        if found is None:
            return None
        shares.append(float(found.float().mean()))
    return tuple(shares)


def reached(encoder: SlideEncoder, trace: Trace, counts: Sequence[int], last: int) -> Tensor | None:
    """[P] bool: the patches whose content can be in [CLS] after block `last`; otherwise as `reach`."""
    rows = torch.zeros(counts[last] + 1, dtype=torch.bool)
    rows[0] = True
    came_back: list[Tensor] = []  # by fusion: of the tokens that each reducer dropped, those that are read
    for block in range(last, -1, -1):
        found = encoder.sources(block, rows)
        if found is None:
            return None
        rows = found
        if trace.fusion is not None and block == len(counts) - 1:
            rows, came_back = _before_fusion(trace, rows)
        if block in trace.assigns:
            assign = trace.assigns[block]
            read = (assign >= 0) & rows[1:][assign.clamp(min=0)]
            if came_back:
                read[assign < 0] = came_back.pop()
            rows = torch.cat((rows[:1], read))
    return rows[1:]


def _before_fusion(trace: Trace, rows: Tensor) -> tuple[Tensor, list[Tensor]]:
    """(the mask `rows` over [CLS] and the tokens that were kept, over those of each reducer that were dropped)."""
    assert trace.fusion is not None
    read = torch.zeros(len(trace.fusion), dtype=torch.bool)
    read[trace.fusion] = rows[1:]
    gone = [int((assign < 0).sum()) for _, assign in sorted(trace.assigns.items())]
    kept, *dropped = read.split([len(read) - sum(gone), *gone])
    return torch.cat((rows[:1], kept)), list(dropped)
