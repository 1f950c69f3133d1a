"""Stride: rows at equal distances, the sampling of many slide models.

Source: HistGen's `linspace` selection (dddavid4real/HistGen, wsi_token_select.py), rounded to the nearest row.
Looks at nothing: what a slide loses when it is only thinned out. Kept sets are nested across rates only
where the rates divide. Count class `exact`, O(K).
"""

from __future__ import annotations

import torch

from slimbench.reducer import Context, Reducer, Reduction
from slimbench.tokens import Tokens


class Stride(Reducer):
    """Keeps the rows nearest to linspace(0, N - 1, K); row 0 for K = 1."""

    ordered = True

    def reduce(self, tokens: Tokens, keep: int, context: Context) -> Reduction:
        gaps = max(keep - 1, 1)
        steps = torch.arange(keep, device=tokens.device)
        return Reduction.keeping(tokens, (2 * steps * (len(tokens) - 1) + gaps) // (2 * gaps))
