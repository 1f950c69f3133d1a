"""What one slide's kept set says without coordinates: when patches leave, from where in the order, and
whether the lesion's are among them.

    left   [P] the block ahead of which each patch left, anything from `depth` on for those that stayed
           (slimbench.trace.Trace.left)
    depth  number of blocks
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from slimbench.statistics.metrics import FloatArray


def mean_depth(left: NDArray[np.uint8], depth: int) -> float:
    """Mean number of blocks that a patch goes through: min(left, depth), over the patches.

    The mean layer at which a patch leaves of Haurum et al. (2023, arXiv 2308.04657), where those that stay
    count as `depth`. NaN for no patch.
    """
    return float(np.minimum(left, depth).mean()) if len(left) else float("nan")


def survival(left: NDArray[np.uint8], depth: int) -> FloatArray:
    """[depth] share of these patches that enter each block: left > block. NaN for no patch.

    Of the patches of a lesion it is their survival by layer; of all patches, what chance gives them.
    """
    if not len(left):
        return np.full(depth, np.nan)
    shares: FloatArray = (left > np.arange(depth)[:, None]).mean(axis=1)
    return shares


def raster_bias(kept: NDArray[np.bool_]) -> float:
    """Mean rank of the kept among the P rows of the slide, minus one half: sum over kept of (row + 1/2) / P
    over their number, minus 1/2.

    In (-1/2, 1/2): 0 for a set spread evenly along the rows, negative where the first rows are kept, as by
    scores that only the rows near [CLS] can have. NaN where none is kept.
    """
    rows = np.flatnonzero(kept)
    return float((rows.mean() + 0.5) / len(kept) - 0.5) if len(rows) else float("nan")
