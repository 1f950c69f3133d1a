"""Which systems cannot be told from the best, and between which ranks each may stand.

The best is chosen on the slides that it is then compared on, so the words are "within noise of the best",
not "as good as". The relation is not transitive: never sort by it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from slimbench.errors import UsageError
from slimbench.statistics.metrics import FloatArray
from slimbench.statistics.paired import align, compare_aligned
from slimbench.statistics.significance import holm
from slimbench.statistics.threads import one_thread

ALPHA = 0.05


@dataclass(frozen=True)
class Ranked:
    """One system among others on the same slides.

    rank_low, rank_high  2.5 and 97.5 % of its rank over patient resamples, ties at their mean; 1 is the best
    p                    against the best, Holm-adjusted over the others; None for the best itself
    within_noise         of the best
    """

    name: str
    value: float
    rank_low: float
    rank_high: float
    p: float | None
    within_noise: bool


def rank_intervals(drawn: FloatArray) -> FloatArray:
    """[2, m] 2.5 and 97.5 % of the rank of each of m systems, from their metric in B resamples [m, B]."""
    places = rankdata(-drawn, axis=0, nan_policy="omit")
    ends: FloatArray = np.nanquantile(places, [0.025, 0.975], axis=1)
    return ends


@one_thread()
def rank(
    systems: Mapping[str, pd.DataFrame], classes: Sequence[str], metric: str = "balanced_accuracy"
) -> list[Ranked]:
    """Rank at least one system by a metric of classification; the order given is kept.

    systems  {name: predictions} on the same slides; classes in trained order
    Raises UsageError where the metric is undefined or the slides are not the same.
    """
    together = align(list(systems.values()), classes)
    values = np.array([together.value(metric, which) for which in range(len(systems))])
    if np.isnan(values).any():
        raise UsageError(f"{metric} is undefined on these test slides; rank by another metric")
    drawn = np.stack([together.drawn(metric, which) for which in range(len(systems))])
    low, high = rank_intervals(drawn)
    best = int(values.argmax())
    others = [which for which in range(len(systems)) if which != best]
    found = [compare_aligned(together, which, best, metric).p for which in others]
    adjusted = dict(zip(others, holm([1.0 if p is None else p for p in found]), strict=True))
    return [
        Ranked(
            name,
            float(values[which]),
            float(low[which]),
            float(high[which]),
            adjusted.get(which),
            which == best or adjusted[which] >= ALPHA,
        )
        for which, name in enumerate(systems)
    ]
