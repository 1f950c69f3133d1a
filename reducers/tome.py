"""ToMe: merge the most similar pairs of tokens.

Bolya et al., "Token Merging: Your ViT But Faster", arXiv 2210.09461; facebookresearch/ToMe. Rows are split
into two alternating sets; every token of the first finds its most similar one in the second, by the cosine
of the head-mean keys; the `drop` most similar pairs become their size-weighted mean, and log(size) enters
the attention from then on (`Pack.merged`).

Different from the source: the keys are those of the block ahead, before rotary positions, because merging
stands between blocks; tokens go back into raster order, so the split alternates from block to block, where
the source's own order mixed the sets; the matching never holds more than a strip of the similarities.
Count class `exact`; a round takes at most half of the tokens. Time O(N^2 d), memory O(N).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from slimbench.reducer import Context, Merger, top_rows
from slimbench.tokens import Tokens


class ToMe(Merger):
    """Exact bipartite soft matching."""

    max_drop = 0.5

    def assign(self, tokens: Tokens, keep: int, context: Context) -> tuple[Tensor, None]:
        return bipartite_match(context.mean_keys(), len(tokens) - keep, context.layer % 2), None


def bipartite_match(metric: Tensor, drop: int, parity: int, strip: int = 1024) -> Tensor:
    """Groups [N] int64 in [0, N - drop) after the `drop` most similar pairs were merged.

    metric  [N, d] any float; compared by cosine in fp32
    drop    at most the number of rows of the first set, which are the rows `parity`, `parity` + 2, ...
    strip   rows of the first set whose similarities are held at once

    Of equally similar pairs the one whose first row is lower is merged.
    """
    n = metric.shape[0]
    rows = torch.arange(n, device=metric.device)
    first, second = rows[parity::2], rows[1 - parity :: 2]
    unit = normalize(metric.float(), dim=1)
    a, b = unit[first], unit[second].T
    best = [(strip_of_a @ b).max(dim=1) for strip_of_a in a.split(strip)]
    similarity = torch.cat([found.values for found in best])
    nearest = torch.cat([found.indices for found in best])
    return _merged(rows, first, second[nearest], top_rows(similarity, drop))


def _merged(rows: Tensor, source: Tensor, target: Tensor, chosen: Tensor) -> Tensor:
    """Groups [N]: each chosen source row joins its target row, every other row stays by itself."""
    home = rows.index_put((source[chosen],), target[chosen])
    number = (home == rows).cumsum(0) - 1
    return number[home]
