"""ToMe inside windows: the matching of `tome`, with partners looked for among neighbours only.

Windows are runs of `window` rows along the raster. The local form of token merging appears with strides along
a space-filling curve in GitMerge3D (anhtuanhsgs/GitMerge3D) and with strides on the image grid in tomesd
(arXiv 2303.17604); here a window is matched as in ToMe, and the `drop` most similar pairs of the WHOLE slide are
merged, so uniform tissue is merged more than mixed tissue. Equal to `tome` when the window is the slide.
Count class `exact`; a round takes at most half of the tokens. Time O(N window d), memory O(N).
"""

from __future__ import annotations

from torch import Tensor

from slimbench.errors import UsageError
from slimbench.reducer import Context, Merger
from slimbench.reducers.tome import bipartite_match
from slimbench.tokens import Tokens


class ToMeLocal(Merger):
    """window: rows, an even number."""

    max_drop = 0.5
    ordered = True

    def __init__(self, dim: int, *, window: int = 1024) -> None:
        super().__init__(dim)
        if window < 2 or window % 2:
            raise UsageError(f"tome-local: window must be an even number of rows, got {window}")
        self.window = window

    def assign(self, tokens: Tokens, keep: int, context: Context) -> tuple[Tensor, None]:
        drop, parity = len(tokens) - keep, context.layer % 2
        return bipartite_match(context.mean_keys(), drop, parity, window=self.window), None
