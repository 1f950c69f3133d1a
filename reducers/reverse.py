"""Reverse: keep what another reducer would drop first. Written `reverse(cropr)`.

The deletion control: if a score means anything, its worst tokens serve the task worse than random ones.
The inner reducer is trained as ever, behind the reversed choice. Count class `exact`; the cost is the inner
reducer's.
"""

from __future__ import annotations

from torch import Tensor

from slimbench.errors import UsageError
from slimbench.reducer import Context, Pruner, Reducer
from slimbench.tokens import Tokens


class Reverse(Pruner):
    """of: any reducer that ranks tokens by a score."""

    def __init__(self, dim: int, *, of: Reducer) -> None:
        if not isinstance(of, Pruner):
            raise UsageError(
                f"reverse needs a reducer that ranks tokens by a score, and {type(of).__name__} has none; "
                "try reverse(cropr)"
            )
        super().__init__(dim, order=of.order)
        self.of = of
        self.supervised, self.detach, self.lr_scale = of.supervised, of.detach, of.lr_scale
        self.ordered = of.ordered

    def score(self, tokens: Tokens, context: Context) -> Tensor:
        return -self.of.score(tokens, context)

    def supervise(self, tokens: Tokens, context: Context) -> Tensor | None:
        return self.of.supervise(tokens, context)
