"""Random pruning: a uniform random subset of the patches.

The baseline that every other reducer has to beat at the same number of tokens. One slide's subsets are
nested across rates; another slide, block, step or run draws anew. Count class `exact`, O(N).
"""

from __future__ import annotations

import torch
from torch import Tensor

from slimbench.reducer import Context, Pruner
from slimbench.tokens import Tokens


class RandomPruning(Pruner):
    """Keeps `keep` of N tokens, drawn without replacement."""

    ordered = True

    def score(self, tokens: Tokens, context: Context) -> Tensor:
        return torch.randperm(len(tokens), generator=context.generator(), device=tokens.device)
