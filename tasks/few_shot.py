"""Few-shot probe: how much of the diagnosis do a handful of slides per class teach?

For each number of shots, 50 draws of that many training slides per class, each probed by
`titan-converged` with the cohort's whole validation split. Only at the true minimum does this measure the
embeddings: early-stopped fits on one slide per class flip a fifth of all predictions.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from slimbench.cohorts.cohort import Cohort
from slimbench.errors import CohortError
from slimbench.seeds import seed_of
from slimbench.statistics.estimates import Metric
from slimbench.statistics.metrics import measure
from slimbench.statistics.probe import fit_probe
from slimbench.task import Evidence, Task, TaskResult
from slimbench.tasks.classification import LabelRule, Part, Splits, predictions, splits, splits_of_tables

METRICS = ("balanced_accuracy", "accuracy", "auroc")


class FewShot(Task):
    """Means over draws; low and high hold 95 % of the draws. Classes with fewer slides give all they have.

    shots  training slides per class, one set of metrics each
    draws  number of training sets drawn for each
    """

    def __init__(self, shots: tuple[int, ...] = (1, 2, 4, 8, 16), draws: int = 50) -> None:
        self.shots = shots
        self.primary = f"balanced_accuracy_{max(shots)}_shot"
        self.draws = draws

    def check(self, cohort: Cohort) -> None:
        data = splits_of_tables(cohort, LabelRule.as_given(cohort), validate=True, classes=2)
        most = int(np.bincount(data.train.y).max())
        if most < max(self.shots):
            fits = "+".join(str(shots) for shots in self.shots if shots <= most) or most
            raise CohortError(
                f"{cohort.name}: no class has {max(self.shots)} training slides, the largest has {most}; write "
                f"few-shot:shots={fits}"
            )

    def run(self, evidence: Evidence) -> TaskResult:
        data = splits(evidence, LabelRule.as_given(evidence.cohort), validate=True)
        metrics, tables = [], []
        penalties: dict[str, list[float]] = {}
        for shots in self.shots:
            values: list[list[float]] = []
            penalties[str(shots)] = []
            for draw in range(self.draws):
                support = _draw(
                    data.train, shots, seed_of("few-shot", evidence.cohort.fingerprint, shots, draw)
                )
                probe = fit_probe("titan-converged", support.labelled, data.val.labelled, len(data.classes))
                log_p = probe.linear.log_probabilities(data.test.x).astype(np.float32)
                found = measure(METRICS, data.test.y, log_p)
                values.append([float(found[name][0]) for name in METRICS])
                penalties[str(shots)].append(probe.facts["penalty"])
                table = predictions(data.test, log_p, data.classes).drop(columns="log_probabilities")
                tables.append(table.assign(shots=shots, draw=draw))
            metrics += _over_draws(shots, np.array(values), data)
        facts = {
            "protocol": "titan-converged",
            "draws": self.draws,
            "penalties": penalties,
            "classes": list(data.classes),
            **data.facts,
        }
        return TaskResult(tuple(metrics), pd.concat(tables, ignore_index=True), facts)


def _draw(train: Part, shots: int, seed: int) -> Part:
    """`shots` slides of each class, without replacement."""
    generator = np.random.default_rng(seed)
    drawn = np.zeros(len(train.y), dtype=bool)
    for k in np.unique(train.y):
        drawn[generator.permutation(np.flatnonzero(train.y == k))[:shots]] = True
    return train.take(drawn)


def _over_draws(shots: int, values: np.ndarray, data: Splits) -> list[Metric]:
    """values [draws, len(METRICS)]."""
    scarce = int((np.bincount(data.train.y) < shots).sum())
    note = (
        f"{scarce} of {len(data.classes)} classes have fewer than {shots} training slides" if scarce else None
    )
    metrics = []
    for name, column in zip(METRICS, values.T, strict=True):
        label, n = f"{name}_{shots}_shot", len(data.test.y)
        if np.isnan(column).any():
            metrics.append(Metric(label, None, n, note="undefined: the test slides have one class"))
            continue
        low, high = (float(end) for end in np.quantile(column, [0.025, 0.975]))
        metrics.append(Metric(label, float(column.mean()), n, low, high, note))
    return metrics
