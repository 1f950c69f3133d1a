"""No reduction: every token goes on. The row that all others are read against.

Count class `fixed`: it keeps its own number, N, whatever is asked, so a sweep runs it once and not per rate.
O(1).
"""

from __future__ import annotations

import torch

from slimbench.reducer import Context, Reducer, Reduction
from slimbench.tokens import Tokens


class Nothing(Reducer):
    """Keeps all N tokens."""

    count = "fixed"

    def reduce(self, tokens: Tokens, keep: int, context: Context) -> Reduction:
        return Reduction(tokens, assign=torch.arange(len(tokens), device=tokens.device))
