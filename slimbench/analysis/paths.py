"""What [CLS] can know of the kept patches, from the kept sets alone: no weights decide it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from slimbench import registry
from slimbench.encoder import SlideEncoder
from slimbench.measure.reach import reached
from slimbench.trace import Trace


def untrained(encoder: str, dim: int) -> SlideEncoder:
    """The encoder of a spec; its attention pattern depends on its arguments and not on its weights.

    Raises PluginError or CheckpointError where it cannot be built here.
    """
    with torch.random.fork_rng(devices=()):
        built: SlideEncoder = registry.encoders.build(encoder, input_dim=dim)
    return built.eval()


def kept_reach(encoder: SlideEncoder, left: NDArray[np.uint8], depth: int) -> float | None:
    """Share of the patches that stay to the end whose content can be in [CLS] after the last block.

    left [P] as Trace.left, of a slide whose tokens leave in raster order and all stand at patches. NaN where
    none stays; None where the encoder does not state what its blocks read.
    """
    stays = left >= depth
    if not stays.any():
        return float("nan")
    trace = Trace(len(left))
    counts = []
    present = left
    for block in range(depth):
        goes_on = present > block
        if not goes_on.all():
            row = np.where(goes_on, goes_on.cumsum() - 1, -1)
            trace.assigns[block] = torch.from_numpy(row)
            present = present[goes_on]
        counts.append(len(present))
    found = reached(encoder, trace, counts, depth - 1)
    return None if found is None else float(found.numpy()[stays].mean())


def stand_at_patches(lefts: Sequence[NDArray[np.uint8]], tokens_per_block: Sequence[float]) -> bool:
    """Whether every token of a cell stands at a patch: whether as many patches as tokens enter each block."""
    there = [np.mean([(left > block).sum() for left in lefts]) for block in range(len(tokens_per_block))]
    return bool(np.allclose(there, tokens_per_block, rtol=1e-9))
