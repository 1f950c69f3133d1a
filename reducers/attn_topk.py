"""Attention top-k: keep the tokens that [CLS], or the mean token, attends to.

query=cls   mean over heads of the [CLS] attention: Top-K of Haurum et al. (arXiv 2308.04657), EViT without
            its fused token.
query=mean  softmax(mean query . keys), mean over heads, times the norm of x: the score of PACT (arXiv
            2504.08966), which needs no [CLS].

Different from the sources: the attention is that of the block ahead, before rotary positions, and DENSE over
all N tokens, because in dilated attention [CLS] itself sees only the top of a slide (Context.cls_attention).
Count class `exact`, O(N D) beside one key projection.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from slimbench.reducer import Context, Pruner
from slimbench.tokens import Tokens


class AttentionTopK(Pruner):
    """query: whose attention ranks the tokens."""

    def __init__(
        self,
        dim: int,
        *,
        query: Literal["cls", "mean"] = "cls",
        order: Literal["raster", "score"] = "raster",
    ) -> None:
        super().__init__(dim, order=order)
        self.query = query

    def score(self, tokens: Tokens, context: Context) -> Tensor:
        if self.query == "cls":
            return context.cls_attention().mean(0)
        return context.attention_of(context.mean_query()).mean(0) * tokens.x.float().norm(dim=1)
