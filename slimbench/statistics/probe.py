"""Linear probes on frozen slide embeddings, as the field quotes them.

    titan-converged   45 penalties, validation log-loss chooses, true minimum (the default of leaderboards)
    titan             the same with scikit-learn's early-stopped lbfgs, as TITAN publishes it: its number
                      depends on BLAS, thread count and scikit-learn version, so these are recorded
    patho-bench       C = 0.5, balanced classes, up to 10,000 iterations, no validation
    uni               C = D K / 100 on train and validation together, up to 1,000 iterations

All fits run in float64 on one thread.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import scipy
import sklearn
import threadpoolctl
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from slimbench.errors import CohortError
from slimbench.statistics.logistic import LEARNED, PATIENCE, Linear, choose_penalty
from slimbench.statistics.metrics import IntArray
from slimbench.statistics.threads import one_thread

Protocol = Literal["titan-converged", "titan", "patho-bench", "uni"]

# TITAN's 45 values: 1e-5 to 1e6, a factor of 1.78 apart
PENALTIES = np.logspace(np.log10(10e-6), np.log10(10e5), num=45)
_WHOLE = 10**7  # n D K up to which `titan` fits every value


@dataclass(frozen=True)
class Labelled:
    """Embeddings with labels. x [n, D], y [n] in [0, K)."""

    x: NDArray[np.floating]
    y: IntArray


@dataclass(frozen=True)
class Probe:
    """A fitted probe and what its protocol chose (part of the record)."""

    linear: Linear
    facts: dict[str, Any]


def fit_probe(protocol: Protocol, train: Labelled, val: Labelled, classes: int) -> Probe:
    """Fit `protocol`. `train` holds every one of the K = `classes` classes, `val` any of them.

    Raises CohortError for fewer than two classes, non-finite embeddings, or a protocol that chooses by
    validation loss without validation slides.
    """
    if classes < 2:
        raise CohortError(f"the training slides have {classes} class; a probe needs at least two")
    for name, part in (("training", train), ("validation", val)):
        bad = np.flatnonzero(~np.isfinite(part.x).all(axis=1))
        if len(bad):
            raise CohortError(f"the embedding of {name} slide {bad[0]} is not finite; a probe cannot use it")
    if protocol in ("titan", "titan-converged") and not len(val.y):
        raise CohortError(f"no labelled validation slides; protocol {protocol} chooses its penalty by them")
    train = Labelled(train.x.astype(np.float64), train.y)
    val = Labelled(val.x.astype(np.float64), val.y)
    with one_thread():
        if protocol == "titan-converged":
            return _titan_converged(train, val, classes)
        if protocol == "titan":
            return _titan(train, val, classes)
        if protocol == "patho-bench":
            return _fixed(train, 0.5, 10_000, "balanced")
        both = Labelled(np.concatenate([train.x, val.x]), np.concatenate([train.y, val.y]))
        return _fixed(both, train.x.shape[1] * classes / 100, 1_000, None)


def _titan_converged(train: Labelled, val: Labelled, classes: int) -> Probe:
    chosen = choose_penalty(train.x, train.y, classes, val.x, val.y, PENALTIES)
    facts = _choice(chosen.penalty, chosen.losses) | {
        "newton_steps": chosen.steps,
        "software": {"torch": torch.__version__},
    }
    return Probe(chosen.linear, facts)


def _titan(train: Labelled, val: Labelled, classes: int) -> Probe:
    """TITAN's loop from the large end, which stops once the validation loss keeps rising.

    The fits do not depend on each other, so on thousands of slides this gives the model of the whole loop
    in a fraction of its time. Small problems walk the whole grid: there, early-stopped fits at the small
    end are noise among which TITAN's loop may choose.
    """
    prior = -np.log(np.bincount(train.y, minlength=classes) / len(train.y))[val.y].mean()
    whole = train.x.size * classes <= _WHOLE
    losses: dict[float, float] = {}
    best: tuple[float, LogisticRegression] | None = None
    rises = stopped_early = 0
    for penalty in map(float, PENALTIES[::-1]):
        model = _lbfgs(train, 1 / penalty, 500, None)
        stopped_early += int(model.n_iter_.max() == 500)
        losses[penalty] = float(log_loss(val.y, model.predict_proba(val.x), labels=np.arange(classes)))
        if best is None or losses[penalty] <= losses[best[0]]:  # TITAN, from the small end, keeps the first
            best, rises = (penalty, model), 0
        else:
            rises += 1
        if not whole and rises >= PATIENCE and losses[best[0]] < LEARNED * prior:
            break
    assert best is not None
    facts = _choice(best[0], losses) | {
        "iterations": int(best[1].n_iter_.max()),
        "fits_stopped_at_max_iter": stopped_early,
        "software": _software(),
    }
    return Probe(_linear(best[1]), facts)


def _fixed(train: Labelled, c: float, max_iter: int, class_weight: str | None) -> Probe:
    model = _lbfgs(train, c, max_iter, class_weight)
    facts = {"C": c, "iterations": int(model.n_iter_.max()), "max_iter": max_iter, "software": _software()}
    return Probe(_linear(model), facts)


def _lbfgs(train: Labelled, c: float, max_iter: int, class_weight: str | None) -> LogisticRegression:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # recorded instead: `iterations`
        return LogisticRegression(C=c, max_iter=max_iter, class_weight=class_weight).fit(train.x, train.y)


def _linear(model: LogisticRegression) -> Linear:
    """scikit-learn's binary model is the difference of two classes; write it as both."""
    weight, bias = model.coef_, model.intercept_
    if len(weight) == 1:
        weight, bias = np.concatenate([0 * weight, weight]), np.concatenate([0 * bias, bias])
    return Linear(weight, bias)


def _choice(penalty: float, losses: dict[float, float]) -> dict[str, Any]:
    return {
        "penalty": penalty,
        "validation_log_loss": losses[penalty],
        "at_grid_edge": penalty in (float(PENALTIES[0]), float(PENALTIES[-1])),
        "penalties_fitted": len(losses),
        "penalties": len(PENALTIES),
    }


def _software() -> dict[str, Any]:
    """What an early-stopped fit depends on."""
    blas = [
        {key: library.get(key) for key in ("internal_api", "version", "architecture", "num_threads")}
        for library in threadpoolctl.threadpool_info()
        if library["user_api"] == "blas"
    ]
    versions = {"scikit-learn": sklearn.__version__, "scipy": scipy.__version__, "numpy": np.__version__}
    return versions | {"blas": blas}
