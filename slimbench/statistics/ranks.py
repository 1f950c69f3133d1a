"""Between which ranks each of several systems may stand on the same slides."""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata

from slimbench.statistics.metrics import FloatArray


def rank_intervals(drawn: FloatArray) -> FloatArray:
    """[2, m] 2.5 and 97.5 % of the rank of each of m systems over resamples, ties at their mean; 1 is the best.

    drawn  [m, B] metric of each system, the higher the better, in the same B patient resamples
    """
    places = rankdata(-drawn, axis=0, nan_policy="omit")
    ends: FloatArray = np.nanquantile(places, [0.025, 0.975], axis=1)
    return ends
