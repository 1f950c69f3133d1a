"""Gated top-k: a learned gate, sampled by Gumbel top-k in training, with a straight-through gradient.

What DynamicViT (Rao et al., arXiv 2106.02034) becomes where training may not keep all N tokens and mask an
N x N attention: its gate looks at a token and at the mean token; training keeps the top `keep` of
logits + Gumbel noise (a sample without replacement, Kool et al., arXiv 1903.06059) and multiplies each kept
token by a gate whose value is 1 and whose gradient is the sigmoid's; inference keeps the top logits.

Different from the source, hence the other name: the count is exact also in training, so the ratio loss is gone;
there is no distillation; one hidden layer of width D / 4 instead of three. The noise is drawn from the
context's seed. Count class `exact`, O(N D^2 / 4).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from slimbench.reducer import Context, Reducer, Reduction, top_rows
from slimbench.tokens import Tokens


class GatedTopK(Reducer):
    """Keeps the tokens whose gate opens widest."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        half = max(dim // 8, 1)
        self.norm = nn.LayerNorm(dim)
        self.look = nn.Linear(dim, 2 * half)
        self.gate = nn.Linear(2 * half, 1)

    def logits(self, x: Tensor) -> Tensor:
        """x [N, D] -> [N], from each token and the mean over all."""
        own, all_of_them = nn.functional.gelu(self.look(self.norm(x.float()))).chunk(2, dim=1)
        seen = torch.cat((own, all_of_them.mean(0).expand_as(own)), dim=1)
        found: Tensor = self.gate(seen).squeeze(1)
        return found

    def reduce(self, tokens: Tokens, keep: int, context: Context) -> Reduction:
        logits = self.logits(tokens.x)
        scores = logits.detach()
        if context.training:
            waiting = torch.empty_like(scores).exponential_(generator=context.generator())
            scores = scores - waiting.log()
        rows = top_rows(scores, keep).sort().values
        reduction = Reduction.keeping(tokens, rows)
        kept = reduction.tokens
        if context.training:
            gate = logits[rows].sigmoid()
            through = (1 + gate - gate.detach()).unsqueeze(1)
            kept = kept.replace_x((kept.x.float() * through).to(kept.x.dtype))
        return Reduction(kept, reduction.assign, scores=logits.detach())
