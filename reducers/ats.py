"""ATS: adaptive token sampling by inverse transform sampling of the [CLS] attention.

Fayyaz et al., arXiv 2111.15667; adaptivetokensampling/ATS. A token's significance is the [CLS] attention summed
over heads times the norm of its value; tokens are sorted by it, and those nearest to `keep` equally spaced
quantiles of its cumulative distribution are kept. A token that is nearest to several is kept once, so a
peaked distribution keeps few: at most `keep`, and how many is the method's own answer.

Different from the source: the attention is the dense row of the block ahead (see attn-topk); the quantiles are
(i + 1/2) / keep of the plain distribution, where the source starts at the smallest significance; never padded.
Count class `at_most`, O(N log N) beside one key and one value projection.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from slimbench.reducer import Context, Reducer, Reduction
from slimbench.tokens import Tokens


class ATS(Reducer):
    """Keeps one to `keep` tokens."""

    count = "at_most"

    def reduce(self, tokens: Tokens, keep: int, context: Context) -> Reduction:
        norm = context.values().float().flatten(1).norm(dim=1)
        significance = context.cls_attention().sum(0) * norm
        reduction = Reduction.keeping(tokens, inverse_transform_sample(significance, keep))
        return replace(reduction, scores=significance)


def inverse_transform_sample(significance: Tensor, keep: int) -> Tensor:
    """Rows [at most keep] int64, ascending, from significance [N] >= 0; accumulated in float64."""
    order = torch.sort(significance.double(), stable=True)
    reached = order.values.cumsum(0)
    reached = reached / reached[-1].clamp(min=torch.finfo(torch.float64).tiny)
    quantiles = (torch.arange(keep, dtype=torch.float64, device=significance.device) + 0.5) / keep
    after = torch.searchsorted(reached, quantiles).clamp(max=len(reached) - 1)
    before = (after - 1).clamp(min=0)
    nearest = torch.where(quantiles - reached[before] <= reached[after] - quantiles, before, after)
    return order.indices[nearest.unique()].sort().values
