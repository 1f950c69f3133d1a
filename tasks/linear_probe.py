"""Linear probe: does a linear classifier on frozen slide embeddings find the diagnosis?

    slimbench sweep --task linear-probe                        titan-converged, the default
    slimbench sweep --task linear-probe:protocol=titan         as published, early-stopped

`slim` is the cohort rule of the SLIM paper: the probe lives inside the cohort's own test split, classes
below a minimum are dropped before splitting it 80/10/10. One such split of 63 slides decides nothing, so
it is drawn many times, whole patients each, and the spread is shown.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import pandas as pd

from slimbench.cohorts.cohort import Cohort
from slimbench.cohorts.splits import SplitRule
from slimbench.errors import CohortError
from slimbench.seeds import seed_of
from slimbench.statistics.estimates import Metric, titan_kappas
from slimbench.statistics.metrics import NAMES, measure
from slimbench.statistics.probe import fit_probe
from slimbench.task import Evidence, Task, TaskResult
from slimbench.tasks.classification import (
    LabelRule,
    Part,
    classified,
    label_supervised,
    part,
    predictions,
    splits,
    splits_of_tables,
    tabled,
)


class LinearProbe(Task):
    """The seven metrics of a logistic regression, see slimbench.statistics.probe.

    protocol          which one
    min_class, draws  of `slim`: slides a class needs in the test split, and number of splits drawn
    """

    primary = "balanced_accuracy"

    def __init__(
        self,
        protocol: Literal["titan-converged", "titan", "patho-bench", "uni", "slim"] = "titan-converged",
        min_class: int = 10,
        draws: int = 20,
    ) -> None:
        self.protocol = protocol
        self.min_class = min_class
        self.draws = draws

    def label_rule(self, cohort: Cohort) -> LabelRule:
        """Which labels take part, as which classes; the named benchmarks have their own."""
        return LabelRule.as_given(cohort)

    def check(self, cohort: Cohort) -> None:
        rule = self.label_rule(cohort)
        if self.protocol == "slim":
            self._large_enough(part(tabled(cohort, "test"), rule), cohort)
        else:
            splits_of_tables(cohort, rule, validate=self._validates, classes=2)

    def run(self, evidence: Evidence) -> TaskResult:
        rule = self.label_rule(evidence.cohort)
        if self.protocol == "slim":
            return self._repeated(evidence, rule)
        data = splits(evidence, rule, validate=self._validates)
        probe = fit_probe(self.protocol, data.train.labelled, data.val.labelled, len(data.classes))
        log_p = probe.linear.log_probabilities(data.test.x).astype(np.float32)
        facts = {
            "protocol": self.protocol,
            "titan_kappas": titan_kappas(data.test.y, log_p),
            **data.facts,
            **probe.facts,
        }
        return classified(data.test, log_p, data.classes, facts)

    @property
    def _validates(self) -> bool:
        return self.protocol in ("titan", "titan-converged")

    def _large_enough(self, every: Part, cohort: Cohort) -> list[int]:
        """The classes that have `min_class` slides."""
        kept = np.flatnonzero(np.bincount(every.y) >= self.min_class)
        if len(kept) < 2:
            raise CohortError(
                f"{cohort.name}: {len(kept)} classes have {self.min_class} test slides; protocol slim needs two, so "
                "lower its min_class"
            )
        return kept.tolist()

    def _repeated(self, evidence: Evidence, rule: LabelRule) -> TaskResult:
        every = part(evidence.embeddings("test"), rule)
        kept = self._large_enough(every, evidence.cohort)
        slides, classes = every.among(kept), [rule.classes[k] for k in kept]
        tables, values, penalties = [], [], []
        for draw in range(self.draws):
            seed = seed_of("slim", evidence.cohort.fingerprint, draw)
            made = slides.split(SplitRule(minimum=self.min_class, seed=seed))
            test = made["test"]
            probe = fit_probe("titan-converged", made["train"].labelled, made["val"].labelled, len(classes))
            log_p = probe.linear.log_probabilities(test.x).astype(np.float32)
            tables.append(predictions(test, log_p, classes).assign(draw=draw))
            values.append(measure(NAMES, test.y, log_p))
            penalties.append(probe.facts["penalty"])
        n = round(float(np.mean([len(table) for table in tables])))
        metrics = tuple(
            _over_draws(name, np.array([value[name][0] for value in values]), n) for name in NAMES
        )
        facts = {
            "protocol": "slim",
            "classes": classes,
            "min_class": self.min_class,
            "draws": self.draws,
            "n": {"all": len(slides.y), "test": n},
            "left_out": {"no_class_or_too_small": len(evidence.embeddings("test").slides) - len(slides.y)},
            "penalties": penalties,
            "label_supervised": label_supervised(evidence),
        }
        return TaskResult(metrics, pd.concat(tables, ignore_index=True), facts)


def _over_draws(name: str, values: np.ndarray, n: int) -> Metric:
    defined = values[~np.isnan(values)]
    if not len(defined):
        return Metric(name, None, n, note="undefined in every split")
    low, high = np.quantile(defined, [0.025, 0.975])
    note = f"mean of {len(defined)} splits; low and high hold 95 % of the splits"
    return Metric(name, float(defined.mean()), n, float(low), float(high), note)
