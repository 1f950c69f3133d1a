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

_IN_CACHE = 2**19  # similarities: 2 MiB, which halves the time of longer strips


class ToMe(Merger):
    """Exact bipartite soft matching."""

    max_drop = 0.5
    ordered = True

    def assign(self, tokens: Tokens, keep: int, context: Context) -> tuple[Tensor, None]:
        return bipartite_match(context.mean_keys(), len(tokens) - keep, context.layer % 2), None


def bipartite_match(
    metric: Tensor, drop: int, parity: int, *, window: int | None = None, strip: int | None = None
) -> Tensor:
    """Groups [N] int64 in [0, N - drop) after the `drop` most similar pairs were merged.

    metric  [N, d] any float; compared by cosine in fp32
    drop    at most the number of rows of the first set, which are the rows `parity`, `parity` + 2, ...
    window  even; a pair lies within one window of so many rows; None = the slide is one window
    strip   rows of the first set whose similarities are held at once; None = what fits a core's cache

    Of equally similar pairs the one whose first row is lower is merged.
    """
    n = len(metric)
    window = window or n
    unit = normalize(metric.float(), dim=1)
    similarity, nearest = [], []
    for start in range(0, n - 1, window):
        end = n if start + window >= n - 1 else start + window  # a single last row joins the window before it
        second = unit[start + 1 - parity : end : 2].T.contiguous()  # a third less time than strided
        first = unit[start + parity : end : 2]
        rows = min(strip or max(64, _IN_CACHE // second.shape[1]), len(first))
        # One room for all strips: malloc would put each behind the results of the one before, and N^2 in all.
        room = unit.new_empty(rows, second.shape[1])
        for part in first.split(rows):
            found = torch.mm(part, second, out=room[: len(part)]).max(dim=1)
            similarity.append(found.values)
            nearest.append(start + 1 - parity + 2 * found.indices)
    chosen = top_rows(torch.cat(similarity), drop)
    home = torch.arange(n, device=metric.device)
    return numbered(home.index_put((parity + 2 * chosen,), torch.cat(nearest)[chosen]))


def numbered(home: Tensor) -> Tensor:
    """Groups [N], numbered by row, from the row [N] that each row joins; one that is joined joins itself."""
    number = (home == torch.arange(len(home), device=home.device)).cumsum(0) - 1
    return number[home]
