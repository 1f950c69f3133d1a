"""Means over queries with intervals that resample patients: for metrics that are a number per query."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from slimbench.statistics.bootstrap import DRAWS, bootstrap
from slimbench.statistics.estimates import Estimate
from slimbench.statistics.intervals import Z, interval, standard_error
from slimbench.statistics.metrics import FloatArray, Weighting
from slimbench.statistics.threads import one_thread


@one_thread()
def resampled_mean(values: FloatArray, weighting: Weighting) -> FloatArray:
    """[B] mean of values [n] under each weighting; NaN where nothing was drawn."""
    groups = weighting.weights.shape[1]
    sums = np.bincount(weighting.group, values, minlength=groups)
    sizes = np.bincount(weighting.group, minlength=groups).astype(np.float64)
    weights = weighting.weights.astype(np.float64)
    mean: FloatArray = (weights @ sums) / (weights @ sizes)
    return mean


def share_estimate(
    name: str, values: FloatArray, patients: Sequence[str], note: str | None = None
) -> Estimate:
    """Mean of values in [0, 1], interval on the logit scale."""
    weighting, value = bootstrap(patients, DRAWS), float(values.mean())
    groups = weighting.weights.shape[1]
    drawn = resampled_mean(values, weighting)
    ends = interval(name, value, drawn, groups=groups, n=len(values), proportion=True)
    notes = "; ".join(filter(None, [note, ends.note])) or None
    return Estimate(name, value, len(values), ends.low, ends.high, notes)


def mean_rank_estimate(name: str, ranks: FloatArray, patients: Sequence[str], last: int) -> Estimate:
    """Mean of ranks in [1, last], normal interval within that range."""
    weighting, value = bootstrap(patients, DRAWS), float(ranks.mean())
    groups = weighting.weights.shape[1]
    if groups < 2:
        return Estimate(name, value, len(ranks), note="no interval: all queries come from one patient")
    half = Z * standard_error(resampled_mean(ranks, weighting), groups)
    return Estimate(name, value, len(ranks), max(1.0, value - half), min(float(last), value + half))


def median_rank_estimate(name: str, ranks: FloatArray, patients: Sequence[str]) -> Estimate:
    """Median of ranks; Woodruff's interval: quantiles at one half plus or minus the clustered error of the
    share at or below the median (Woodruff 1952)."""
    weighting, value = bootstrap(patients, DRAWS), float(np.median(ranks))
    groups = weighting.weights.shape[1]
    if groups < 2:
        return Estimate(name, value, len(ranks), note="no interval: all queries come from one patient")
    below = (ranks < value) + (ranks == value) / 2
    half = Z * standard_error(resampled_mean(below.astype(np.float64), weighting), groups)
    low, high = np.quantile(ranks, [max(0.0, 0.5 - half), min(1.0, 0.5 + half)])
    return Estimate(name, value, len(ranks), float(low), float(high))
