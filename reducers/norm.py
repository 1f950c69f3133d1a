"""Norm: keep the tokens of largest Euclidean norm.

The null model of every scorer that ranks un-normalised residuals, Cropr among them: what such a score
finds without having learned anything. Count class `exact`, O(N D).
"""

from __future__ import annotations

from torch import Tensor

from slimbench.reducer import Context, Pruner
from slimbench.tokens import Tokens


class Norm(Pruner):
    """Keeps the largest norms."""

    def score(self, tokens: Tokens, context: Context) -> Tensor:
        return tokens.x.float().norm(dim=1)
