"""Faithfulness: would the unpruned encoder have come to the same embedding from the kept patches alone?

f is the encoder without reducers, S the patches of slide X that are kept to the end (those that a token stands
at), R a random set of as many, d(a, b) = 1 - cos(a, b):

    sufficiency         d(f(X_S), f(X)) - E_R d(f(X_R), f(X)); below 0, the kept patches say more of the slide
                        than as many random ones
    comprehensiveness   d(f(X without S), f(X)) - E_R d(f(X without R), f(X)); above 0, the slide misses the kept
                        patches more than as many random ones

each the mean over slides. The two measures are ERASER's (DeYoung et al. 2020, arXiv 1911.03429), on the embedding
in place of a class probability and with chance taken away; ERASER averages over rates, which the rows of
a sweep are. The kept set is judged, not the pruned pass: f sees the patches as they came from disk. Both are 0
for a slide of which everything is kept. Costs 3 + 2 `draws` passes of the unpruned encoder a slide.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from slimbench.cohorts.cohort import Cohort
from slimbench.encoder import SlideInput
from slimbench.errors import CohortError, UsageError
from slimbench.seeds import seed_of
from slimbench.statistics.embeddings import cosines
from slimbench.statistics.estimates import Metric
from slimbench.statistics.means import mean_estimate
from slimbench.task import Evidence, Task, TaskResult
from slimbench.tasks.unpruned import Unpruned
from slimbench.trace import STAYED


class Faithfulness(Task):
    """Sufficiency and comprehensiveness of the kept patches, beyond those of as many random ones.

    slides  test slides that are looked at, drawn at random, the same for every row of a cohort
    draws   random sets a slide, the same for every row that keeps as many patches
    """

    needs_patches = True
    primary = "comprehensiveness"

    def __init__(self, *, slides: int = 32, draws: int = 5) -> None:
        self.slides, self.draws = slides, draws

    def check(self, cohort: Cohort) -> None:
        if not cohort.split("test"):
            raise CohortError(f"{cohort.name} has no test slides; faithfulness has nothing to measure")

    def run(self, evidence: Evidence) -> TaskResult:
        test = evidence.embeddings("test")
        if test.left is None:
            raise UsageError(
                f"{type(evidence.encoder).__name__} does not say where patches went; leave faithfulness out"
            )
        unpruned = Unpruned(evidence)
        rows = []
        for index in sampled([slide.id for slide in test.slides], self.slides):
            slide, kept = test.slides[index], test.left[index] == STAYED
            if kept.any():
                known = {"slide_id": slide.id, "patient": slide.patient, "patches": int(kept.sum())}
                rows.append(known | self.distances(unpruned, evidence.slide(slide.id), kept))
        names = ("sufficiency", "comprehensiveness")
        facts = {"slides": len(rows), "of": len(test.slides), "draws": self.draws}
        if not rows:
            why = "undefined: the tokens of this reducer stand at no patch"
            return TaskResult(tuple(Metric(name, None, 0, note=why) for name in names), facts=facts)
        table = pd.DataFrame(rows)
        table["sufficiency"] = table["kept"] - table["random"]
        table["comprehensiveness"] = table["without_kept"] - table["without_random"]
        patients = table["patient"].tolist()
        metrics = tuple(mean_estimate(name, table[name].to_numpy(), patients, -2, 2) for name in names)
        return TaskResult(metrics, table, facts)

    def distances(self, unpruned: Unpruned, slide: SlideInput, kept: NDArray[np.bool_]) -> dict[str, float]:
        """d of the kept patches [P], of random ones (mean over draws), of the slide without either."""
        (inside,), (outside,) = np.nonzero(kept), np.nonzero(~kept)
        if not len(outside):
            return dict.fromkeys(("kept", "random", "without_kept", "without_random"), 0.0)
        draw = np.random.default_rng(seed_of("faithfulness", slide.id))
        shuffled = [draw.permutation(len(kept)) for _ in range(self.draws)]
        whole = unpruned(slide)

        def d(*sets: NDArray[np.integer]) -> float:
            """Mean distance of the embeddings of sets of patches, in raster order, to that of all."""
            seen = np.stack([unpruned(slide, np.sort(patches)) for patches in sets])
            return float(1 - cosines(seen, whole[None]).mean())

        return {
            "kept": d(inside),
            "random": d(*(patches[: len(inside)] for patches in shuffled)),
            "without_kept": d(outside),
            "without_random": d(*(patches[len(inside) :] for patches in shuffled)),
        }


def sampled(ids: Sequence[str], number: int) -> list[int]:
    """Places of `number` of the slides (or all), drawn by their ids, in order."""
    draw = np.random.default_rng(seed_of("faithfulness", *ids))
    return sorted(draw.choice(len(ids), min(number, len(ids)), replace=False).tolist())
