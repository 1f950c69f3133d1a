"""PiToMe: merge where tokens have many like them, protect those that stand alone.

Tran et al., "Accelerating Transformers with Spectrum-Preserving Token Merging", arXiv 2405.16148;
hchautran/PiToMe. Energy_i = mean_j ELU(cos(k_i, k_j) - margin) over head-mean keys; the 2 `drop` tokens of
highest energy alternate, by rank, between two sets, and every one of the first joins its most similar one
of the second, as their size-weighted mean; all others are protected.

Different from the source: all this happens inside windows of `window` rows along the raster, each giving up
its proportional share, because energies over 17,182 tokens cost more than half a block; equal to the
unwindowed method when the window is the slide. The margin is one number, where the source lowers it with
depth. The keys are those of the block ahead, before rotary positions.
Count class `exact`; a round takes at most half of the tokens. Time O(N window d), memory O(N + window^2).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import elu, normalize

from slimbench.errors import UsageError
from slimbench.reducer import Context, Merger, top_rows
from slimbench.reducers.tome import numbered
from slimbench.tokens import Tokens


class PiToMe(Merger):
    """window: rows, an even number; margin: the cosine above which tokens count as alike."""

    max_drop = 0.5
    ordered = True

    def __init__(self, dim: int, *, window: int = 1024, margin: float = 0.5) -> None:
        super().__init__(dim)
        if window < 2 or window % 2:
            raise UsageError(f"pitome: window must be an even number of rows, got {window}")
        self.window, self.margin = window, margin

    def assign(self, tokens: Tokens, keep: int, context: Context) -> tuple[Tensor, None]:
        n = len(tokens)
        unit = normalize(context.mean_keys().float(), dim=1)
        home = torch.arange(n, device=tokens.device)
        for start in range(0, n, self.window):
            end = min(start + self.window, n)
            # Shares rounded up at each border: no window gives up more than half, and they sum to `drop`.
            drop = -(-end * (n - keep) // n) + (-start * (n - keep) // n)
            source, target = energy_match(unit[start:end], drop, self.margin)
            home[start + source] = start + target
        return numbered(home), None


def energy_match(unit: Tensor, drop: int, margin: float) -> tuple[Tensor, Tensor]:
    """(rows that go, rows they join), each [drop] int64, from unit vectors [n, d]; drop <= n / 2."""
    similarity = unit @ unit.T
    energy = elu(similarity - margin).mean(1)
    ranked = top_rows(energy, 2 * drop)
    source, target = ranked[::2], ranked[1::2]
    if not drop:
        return source, target
    return source, target[similarity[source][:, target].argmax(1)]
