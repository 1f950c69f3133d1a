"""EViT: keep what [CLS] attends to, and fuse the rest into one token.

Liang et al., "Not All Patches are What You Need", arXiv 2202.07800; youweiliang/evit. The fused token is
sum_i a_i x_i over the pruned tokens, a = mean over heads of the [CLS] attention, as published NOT divided by
sum_i a_i. At the next module it competes like any other token.

Different from the source: `keep` counts the fused token (the source returns one more); the attention is the
dense row of the block ahead (see attn-topk) and carries no gradient; the fused token stands at the mean place
of its patches and its size is their number, so log(size) enters the attention after it.
Count class `exact`, O(N D) beside one key projection.
"""

from __future__ import annotations

import torch

from slimbench.reducer import Context, Reducer, Reduction, top_rows
from slimbench.tokens import Tokens


class EViT(Reducer):
    """Keeps the `keep` - 1 most attended tokens and one fused one."""

    def reduce(self, tokens: Tokens, keep: int, context: Context) -> Reduction:
        attention = context.cls_attention().mean(0)
        ranked = top_rows(attention, len(tokens))
        kept, rest = ranked[: keep - 1].sort().values, ranked[keep - 1 :]
        size = tokens.size[rest]
        fused = attention[rest] @ tokens.x[rest].float()
        place = (size / size.sum()) @ tokens.coords[rest]
        assign = torch.full_like(ranked, keep - 1)
        assign[kept] = torch.arange(keep - 1, device=tokens.device)
        together = tokens.take(kept).append(fused.unsqueeze(0), place.unsqueeze(0), size.sum().unsqueeze(0))
        return Reduction(together, assign, scores=attention)
