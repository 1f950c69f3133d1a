"""TokenLearner: K slots, each a learned softmax mean over all tokens.

Ryoo et al., arXiv 2106.11297, in the form v1.1 of google-research/scenic (token_learner/model.py):
weights = softmax over tokens of MLP(LN(x)), hidden width 64; slots = weights x.

Different from the source: any N (the earlier convolutional form needs a full square grid), and a patch's size
is shared out over the slots, so log(size) enters the attention after it. Count class `fixed`: its number of
slots is a parameter and no rate changes it, so a sweep has one row of it (rate 0). Under a schedule of many
modules each makes K slots of K; `once(tokenlearner:slots=64):after=1` is the source's single one.
O(N K), memory O(N K).
"""

from __future__ import annotations

from torch import Tensor, nn

from slimbench.reducer import Context, Pooler
from slimbench.tokens import Tokens


class TokenLearner(Pooler):
    """slots: K, the number of tokens that leave."""

    count = "fixed"

    def __init__(self, dim: int, *, slots: int = 64) -> None:
        super().__init__(dim)
        self.norm = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 64), nn.GELU(), nn.Linear(64, slots))

    def weights(self, tokens: Tokens, keep: int, context: Context) -> Tensor:
        logits: Tensor = self.mlp(self.norm(tokens.x.float()))
        return logits.softmax(dim=0).T
