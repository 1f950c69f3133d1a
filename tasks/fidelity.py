"""Fidelity: how much of the unpruned encoder's embedding is left after pruning.

Z [n, D] are the embeddings of the n test slides under the cell's plan, Z* those of the same weights without
reducers. No labels, no reports.

    cosine                  cos(z, z*), mean over slides
    linear_cka              ||Z' Z*||^2 / (||Z' Z|| ||Z*' Z*||), columns centred over slides (Kornblith et al.
                            2019, arXiv 1905.00414): blind to rotation and scale, which cosine is not. Near 1
                            whatever the embeddings where slides are fewer than their D columns
    linear_cka_debiased     the same without that bias (Song et al. 2012; Nguyen et al. 2021, arXiv 2010.15327): 0 on
                            average for unrelated embeddings, also below it; the one to read on few slides
    neighbour_overlap       share of a slide's 10 nearest slides (Euclidean) under Z* that are also so under Z,
                            mean over slides; what chance gives is among the facts
    effective_rank          exp of the entropy of the normalised singular values of the centred Z (Roy & Vetterli
                            2007); effective_rank_unpruned is that of Z*

An embedding can move far and serve a probe as well as before: fidelity says what changed, not what it cost.
Where a model was trained at one rate, "unpruned" is that model run at rate 0, not one trained unpruned.
Intervals are over patients, that of linear_cka around its biased value; the slides that neighbours are sought
among stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from slimbench.cohorts.cohort import Cohort
from slimbench.errors import CohortError
from slimbench.statistics.embeddings import (
    Rows,
    cosines,
    debiased_linear_cka,
    effective_rank,
    linear_cka,
    neighbour_overlap,
)
from slimbench.statistics.estimates import Metric
from slimbench.statistics.means import mean_estimate, share_estimate
from slimbench.task import Evidence, Task, TaskResult
from slimbench.tasks.unpruned import Unpruned


class Fidelity(Task):
    """Embeddings of the test slides against those of the same model unpruned.

    neighbours  nearest slides that are compared, or all others where there are fewer
    """

    needs_patches = True
    primary = "cosine"

    def __init__(self, *, neighbours: int = 10) -> None:
        self.neighbours = neighbours

    def check(self, cohort: Cohort) -> None:
        n = len(cohort.split("test"))
        if n < 2:
            raise CohortError(
                f"{cohort.name} has {n} test slides; fidelity compares at least two, "
                "so give the test split more or leave the task out"
            )

    def run(self, evidence: Evidence) -> TaskResult:
        self.check(evidence.cohort)
        test = evidence.embeddings("test")
        n = len(test.slides)
        unpruned = Unpruned(evidence)
        whole = np.stack([unpruned(evidence.slide(slide.id)) for slide in test.slides])
        patients = [slide.patient for slide in test.slides]
        cosine = cosines(test.embedding, whole)
        k = min(self.neighbours, n - 1)
        overlap = neighbour_overlap(test.embedding, whole, k)
        all_near = "all other slides are neighbours, so this is 1" if k == n - 1 else None
        return TaskResult(
            (
                mean_estimate("cosine", cosine, patients, -1, 1),
                *_alignment(test.embedding, whole, patients),
                share_estimate("neighbour_overlap", overlap, patients, all_near),
                Metric("effective_rank", effective_rank(test.embedding), n),
                Metric("effective_rank_unpruned", effective_rank(whole), n),
            ),
            pd.DataFrame(
                {
                    "slide_id": [slide.id for slide in test.slides],
                    "patient": patients,
                    "cosine": cosine,
                    "neighbour_overlap": overlap,
                }
            ),
            {"neighbours": k, "chance_neighbour_overlap": k / (n - 1)},
        )


def _alignment(z: Rows, whole: Rows, patients: Sequence[str]) -> Iterator[Metric]:
    n = len(z)
    apart = "fewer than 4 slides" if n < 4 else "all slides are equally far apart"
    for name, (value, pull), least, why in (
        ("linear_cka", linear_cka(z, whole), 0, "all slides have one embedding"),
        ("linear_cka_debiased", debiased_linear_cka(z, whole), -1, apart),
    ):
        if np.isnan(value):
            yield Metric(name, None, n, note=f"undefined: {why}")
        elif np.isnan(pull).any():
            yield Metric(name, value, n, note="no interval: undefined without one of the slides")
        else:
            yield mean_estimate(name, value + pull, patients, least, 1)
