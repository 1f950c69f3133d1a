"""Text only: no slide at all, the frozen text tower's vector of the slide's own report.

    slimbench sweep --encoder text-only --reducer none --text tfidf

What the report alone gives a probe: an encoder that was trained on reports is read against it. A slide without a
report gets a vector of zeros, which says nothing, so that all rows stand on the same slides; records and tables count
them. Nothing is learned here: zero-shot is the tower's own, and in retrieval a report finds itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from slimbench.encoder import Encoded, Plan, SlideEncoder, SlideInput


class TextOnly(SlideEncoder):
    """The vector as it is, [input_dim], the tower's width."""

    reads = "report"

    def __init__(self, input_dim: int) -> None:
        super().__init__()
        self.dim, self.depth = input_dim, 0

    def forward(self, slides: Sequence[SlideInput], plan: Plan) -> Encoded:
        return Encoded(torch.cat([slide.tokens.x for slide in slides]), tuple(() for _ in slides))
