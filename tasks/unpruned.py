"""The cell's encoder without its reducers, for tasks that ask what a reducer changed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from torch import nn

from slimbench.block_encoder import BlockEncoder
from slimbench.encoder import SlideEncoder, SlideInput
from slimbench.measure.passes import Pass
from slimbench.task import Evidence
from slimbench.tokens import Tokens


class Unpruned:
    """The same weights at rate 0, reducers taken out: a `fixed` one would reduce at rate 0 too."""

    def __init__(self, evidence: Evidence) -> None:
        plan = replace(evidence.plan, rate=0.0, trace=False)
        self._run = Pass(evidence.encoder, plan, evidence.precision)

    def __call__(self, slide: SlideInput, patches: NDArray[np.integer] | None = None) -> NDArray[np.float32]:
        """[D] embedding of a slide, or of those of its patches that have the row numbers `patches`, in that
        order, as if there were no others."""
        if patches is not None:
            rows = slide.tokens.take(slide.tokens.origin.new_tensor(patches))
            truth = None if slide.truth is None else slide.truth[rows.origin]
            slide = replace(slide, tokens=Tokens.of(rows.x, rows.coords), truth=truth)
        with _without_reducers(self._run.encoder):
            embedding: NDArray[np.float32] = self._run(slide).embedding[0].float().cpu().numpy()
        return embedding


@contextmanager
def _without_reducers(encoder: SlideEncoder) -> Iterator[None]:
    if not isinstance(encoder, BlockEncoder):
        yield
        return
    held, encoder.reducers = encoder.reducers, nn.ModuleDict()
    try:
        yield
    finally:
        encoder.reducers = held
