"""Oracle: keep the patches that are known to be diagnostic, then random others.

The upper bound of lesion recall; only on a cohort that knows its lesions (`digits`, annotated regions). Its
lower bound is `reverse(oracle)`. Count class `exact`, O(N).
"""

from __future__ import annotations

import torch
from torch import Tensor

from slimbench.errors import UsageError
from slimbench.reducer import Context, Pruner
from slimbench.tokens import Tokens


class Oracle(Pruner):
    """Keeps context.truth; a token that stands at no patch counts as not diagnostic."""

    ordered = True

    def score(self, tokens: Tokens, context: Context) -> Tensor:
        if context.truth is None:
            raise UsageError(
                "oracle keeps known lesions, and this cohort knows none; use it on digits or on a cohort "
                "with annotated regions"
            )
        diagnostic = context.truth[tokens.origin.clamp(min=0)] & (tokens.origin >= 0)
        return diagnostic + torch.rand(len(tokens), generator=context.generator(), device=tokens.device)
