"""How much of a slide its [CLS] can know: which patches have a way into the embedding.

In dilated attention [CLS] reads few patches itself and the rest through others, block by block; rows behind
the longest segment never reach it, unless a reducer moves them forward. A path is no promise that anything
travels along it; a missing one is a promise that nothing does.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

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
        rows = torch.zeros(counts[last] + 1, dtype=torch.bool)
        rows[0] = True
        for block in range(last, -1, -1):
            found = encoder.sources(block, rows)
            if found is None:
                return None
            rows = found
            if block in trace.assigns:
                assign = trace.assigns[block]
                read = (assign >= 0) & rows[1:][assign.clamp(min=0)]
                rows = torch.cat((rows[:1], read))
        shares.append(float(rows[1:].float().mean()))
    return tuple(shares)
