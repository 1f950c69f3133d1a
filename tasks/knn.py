"""Nearest neighbours and nearest class means: probes without a fit.

knn         vote of the 20 nearest training slides (Euclidean), as UNI and CONCH report it
simpleshot  nearest class mean after centring by the training mean and L2-normalising
            (Wang et al. 2019, as in UNI)
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.neighbors import KNeighborsClassifier

from slimbench.cohorts.cohort import Cohort
from slimbench.statistics.threads import one_thread
from slimbench.task import Evidence, Task, TaskResult
from slimbench.tasks.classification import LabelRule, Part, classified, splits, splits_of_tables


class NearestNeighbours(Task):
    """k nearest neighbours: the nearest training slides vote on the diagnosis.

    k  neighbours that vote, or all training slides where there are fewer
    """

    primary = "balanced_accuracy"

    def __init__(self, k: int = 20) -> None:
        self.k = k

    def check(self, cohort: Cohort) -> None:
        splits_of_tables(cohort, LabelRule.as_given(cohort), validate=False)

    def run(self, evidence: Evidence) -> TaskResult:
        data = splits(evidence, LabelRule.as_given(evidence.cohort), validate=False)
        k = min(self.k, len(data.train.y))
        with one_thread():
            model = KNeighborsClassifier(n_neighbors=k).fit(data.train.x, data.train.y)
            votes = k * model.predict_proba(data.test.x)
        # One vote more, spread over the classes, keeps the logarithm finite and every order as it is.
        log_p = np.log((votes + 1 / votes.shape[1]) / (k + 1))
        return classified(data.test, log_p, data.classes, {"k": k, **data.facts})


class SimpleShot(Task):
    """SimpleShot: the nearest class mean names the diagnosis.

    Its log-probabilities are those of unit Gaussians around the means.
    """

    primary = "balanced_accuracy"

    def check(self, cohort: Cohort) -> None:
        splits_of_tables(cohort, LabelRule.as_given(cohort), validate=False)

    def run(self, evidence: Evidence) -> TaskResult:
        data = splits(evidence, LabelRule.as_given(evidence.cohort), validate=False)
        log_p = class_mean_log_probabilities(data.train, data.test.x, len(data.classes))
        return classified(data.test, log_p, data.classes, data.facts)


def class_mean_log_probabilities(train: Part, x: NDArray[np.floating], classes: int) -> NDArray[np.float64]:
    """[m, K] for x [m, D]."""
    centre = train.x.astype(np.float64).mean(axis=0)
    support, queries = _unit(train.x - centre), _unit(x - centre)
    means = np.stack([support[train.y == k].mean(axis=0) for k in range(classes)])
    logits = -0.5 * ((queries[:, None, :] - means[None, :, :]) ** 2).sum(axis=2)
    log_p: NDArray[np.float64] = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    return log_p


def _unit(x: NDArray[np.float64]) -> NDArray[np.float64]:
    unit: NDArray[np.float64] = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    return unit
