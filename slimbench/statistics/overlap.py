"""How much two sets of kept patches have in common, and what their sizes alone would give.

Each function takes numbers, or arrays of them with one entry per slide:

    both  patches in both sets, |A and B|        n  patches of the slide
    a, b  patches in either set, |A| and |B|

and is NaN where it is undefined.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from slimbench.statistics.metrics import FloatArray

Counts = NDArray[np.int64] | int


def chance_corrected(both: Counts, a: Counts, b: Counts, n: Counts) -> FloatArray:
    """(both - a b / n) / (min(a, b) - a b / n): 1 where the smaller set lies in the larger, 0 at what chance
    gives, negative where the sets avoid each other.

    The form of a kappa: observed minus expected over largest minus expected. For sets of equal size it is
    Kuncheva's consistency index (2007). Undefined where a set is empty or holds every patch, because then
    only one intersection is possible.
    """
    return _ratio(
        np.multiply(n, both) - np.multiply(a, b), np.multiply(n, np.minimum(a, b)) - np.multiply(a, b)
    )


def intersection_over_union(both: Counts, a: Counts, b: Counts) -> FloatArray:
    """both / (a + b - both), the Jaccard index that Haurum et al. (2023, arXiv 2308.04657) compare pruned
    sets by; undefined for two empty sets. It rises with the share kept whatever is kept: read it beside
    `chance_union`."""
    return _ratio(np.asarray(both), np.subtract(np.add(a, b), both))


def chance_union(a: Counts, b: Counts, n: Counts) -> FloatArray:
    """What `intersection_over_union` is where the intersection is the one expected of random sets, a b / n:
    rho / (2 - rho) for two sets that keep the share rho."""
    expected = _ratio(np.multiply(a, b), np.asarray(n))
    return _ratio(expected, np.add(a, b) - expected)


def nestedness(both: Counts, smaller: Counts) -> FloatArray:
    """both / smaller: share of the smaller set that the larger one holds too, 1 where one more patch to drop
    never brings another one back; undefined for an empty set. Chance gives the larger set's share b / n."""
    return _ratio(np.asarray(both), np.asarray(smaller))


def _ratio(above: NDArray, below: NDArray) -> FloatArray:
    """above / below, NaN where below is 0."""
    above, below = np.asarray(above, np.float64), np.asarray(below, np.float64)
    found: FloatArray = np.divide(
        above, below, out=np.full(np.broadcast_shapes(above.shape, below.shape), np.nan), where=below != 0
    )
    return found
