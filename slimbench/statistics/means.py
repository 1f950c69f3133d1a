"""Means over queries with intervals over patients: for metrics that are a number per query.

Their standard error needs no resampling: that of a ratio of sums over patients, linearised, is what the
patient bootstrap tends to, and costs nothing with a million queries.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from slimbench.statistics.bootstrap import groups_of
from slimbench.statistics.estimates import Metric
from slimbench.statistics.intervals import NO_SPREAD, Interval, Z, from_error
from slimbench.statistics.metrics import FloatArray

_ONE_PATIENT = Interval(None, None, "no interval: all queries come from one patient")


def clustered_error(values: FloatArray, patients: Sequence[str]) -> float | None:
    """Standard error of the mean of values [n] when whole patients are drawn; None for one patient."""
    group = groups_of(patients)
    count = int(group.max()) + 1
    if count < 2:
        return None
    pull = np.bincount(group, values - values.mean(), minlength=count)
    error = float(np.sqrt(np.square(pull).sum() * count / (count - 1)) / len(values))
    return error if error > 1e-12 else 0.0  # rounding of equal values


def share_estimate(name: str, values: FloatArray, patients: Sequence[str], note: str | None = None) -> Metric:
    """Mean of values in [0, 1], interval on the logit scale."""
    value, error, n = float(values.mean()), clustered_error(values, patients), len(values)
    ends = (
        _ONE_PATIENT
        if error is None
        else from_error(name, value, error, groups=len(set(patients)), n=n, proportion=True)
    )
    notes = "; ".join(filter(None, [note, ends.note])) or None
    return Metric(name, value, n, ends.low, ends.high, notes)


def mean_estimate(
    name: str, values: FloatArray, patients: Sequence[str], least: float, most: float, note: str | None = None
) -> Metric:
    """Mean of values in [least, most], normal interval within that range; none where patients do not differ."""
    value, error = float(values.mean()), clustered_error(values, patients)
    if not error:
        why = _ONE_PATIENT if error is None else NO_SPREAD
        return Metric(name, value, len(values), note="; ".join(filter(None, [note, why.note])))
    low, high = max(least, value - Z * error), min(most, value + Z * error)
    return Metric(name, value, len(values), low, high, note)


def median_rank_estimate(name: str, ranks: FloatArray, patients: Sequence[str]) -> Metric:
    """Median of ranks; Woodruff's interval: quantiles at one half plus or minus 1.96 errors of the share
    below the median (Woodruff 1952)."""
    value = float(np.median(ranks))
    error = clustered_error((ranks < value) + (ranks == value) / 2, patients)
    if not error:
        return Metric(name, value, len(ranks), note=(_ONE_PATIENT if error is None else NO_SPREAD).note)
    low, high = np.quantile(ranks, [max(0.0, 0.5 - Z * error), min(1.0, 0.5 + Z * error)])
    return Metric(name, value, len(ranks), float(low), float(high))
