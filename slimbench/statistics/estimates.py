"""The metrics of one system's predictions: value, n and interval, or the reason why there is none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slimbench.statistics.bootstrap import DRAWS, bootstrap, jackknife
from slimbench.statistics.intervals import SMALL, Method, interval
from slimbench.statistics.metrics import MIN_SUPPORT, NAMES, Confusion, IntArray, Weighting, measure
from slimbench.statistics.threads import one_thread

_OPTIMISTIC = ("balanced_accuracy", "kappa_quadratic", "auroc")  # intervals too narrow on few slides


@dataclass(frozen=True)
class Metric:
    """One number of a task.

    value      None when it is undefined; then `note` says why
    n          how many slides (queries, patches, ...) it rests on
    low, high  95 % interval, None where there is none
    """

    name: str
    value: float | None
    n: int
    low: float | None = None
    high: float | None = None
    note: str | None = None


@dataclass(frozen=True)
class Estimates:
    """All metrics of one system, and what their resamples were like (part of the record)."""

    metrics: tuple[Metric, ...]
    facts: Mapping[str, Any]


@one_thread()
def estimate(
    truth: IntArray,
    log_p: NDArray[np.floating],
    patients: Sequence[str],
    classes: Sequence[str],
    *,
    draws: int = DRAWS,
    method: Method = "standard",
) -> Estimates:
    """Measure n > 0 predictions.

    truth [n] index into `classes` (the K trained ones, in order); log_p [n, K]; patients [n].
    """
    n, weighting = len(truth), bootstrap(patients, draws)
    support = np.bincount(truth, minlength=len(classes))
    absent = [name for name, count in zip(classes, support, strict=True) if not count]
    small = [name for name, count in zip(classes, support, strict=True) if 0 < count < MIN_SUPPORT]
    points = measure(NAMES, truth, log_p)
    drawn = measure(NAMES, truth, log_p, weighting)
    without = measure(NAMES, truth, log_p, jackknife(patients)) if method == "bca" else {}
    found, bias = [], {}
    for name in NAMES:
        value = float(points[name][0])
        counted = int(support[support >= MIN_SUPPORT].sum()) if name == "balanced_accuracy_10" else n
        if np.isnan(value):
            found.append(Metric(name, None, counted, note=_why_undefined(name)))
            continue
        ends = interval(
            name,
            value,
            drawn[name],
            groups=weighting.weights.shape[1],
            n=n,
            method=method,
            proportion=name == "accuracy",
            left_out=without.get(name),
        )
        bias[name] = float(np.nanmean(drawn[name])) - value
        notes = [ends.note]
        if absent and name in ("balanced_accuracy", "auroc"):
            notes.append(
                f"over the {len(classes) - len(absent)} classes present; absent: {', '.join(absent)}"
            )
        if small and name == "balanced_accuracy_10":
            notes.append(f"without {len(small)} classes of fewer than {MIN_SUPPORT} test slides")
        if n < SMALL and name in _OPTIMISTIC:
            notes.append(f"small test set ({n} slides): the interval is too narrow")
        note = "; ".join(filter(None, notes)) or None
        found.append(Metric(name, value, counted, ends.low, ends.high, note))
    facts = {
        "resamples": draws,
        "patients": weighting.weights.shape[1],
        "absent_classes": absent,
        "share_of_resamples_missing_a_class": _share_missing(truth, log_p, weighting),
        "bootstrap_bias": bias,
    }
    return Estimates(tuple(found), facts)


def titan_kappas(truth: IntArray, log_p: NDArray[np.floating]) -> dict[str, float | None]:
    """`kappa` and `nw_kappa` as TITAN prints them: classes ranked among the truths and predictions that occur.

    Their weights differ between systems and resamples, so they serve only beside TITAN's own tables. None
    where undefined.
    """
    predicted = log_p.argmax(axis=1)
    seen, index = np.unique(np.concatenate([truth, predicted]), return_inverse=True)
    scores = np.eye(len(seen))[index[len(truth) :]]
    names = {"kappa": "kappa_quadratic", "nw_kappa": "kappa_linear"}
    values = measure(names.values(), index[: len(truth)], scores)
    return {key: None if np.isnan(values[name][0]) else float(values[name][0]) for key, name in names.items()}


def _share_missing(truth: IntArray, log_p: NDArray[np.floating], weighting: Weighting) -> float:
    """Share of resamples that lack a class which the test set has."""
    counted = Confusion.of(truth, truth, log_p.shape[1], weighting)
    return float((counted.rows[:, counted.support > 0] == 0).any(axis=1).mean())


def _why_undefined(name: str) -> str:
    if name == "auroc":
        return "undefined: the test slides have one class"
    if name == "balanced_accuracy_10":
        return f"undefined: no class has {MIN_SUPPORT} test slides"
    return "undefined: one class only, and it is always predicted"
