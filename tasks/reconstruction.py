"""Reconstruction: how well the tokens that the reducers leave stand for the patches that went in.

For one slide, over its patches p with input features x_p and their mean m:

    reconstruction_error    sum_p ||x_p - r_p||^2 / sum_p ||x_p - m||^2, mean over the test slides

r_p is what stands for p at the end, in the space of the input features:

    p is in a token     the mean of the input features of all patches in that token (each patch counts once, so
                        it is the size-weighted mean over all merges; a reducer's own weights and the blocks in
                        between play no part). A pruner's kept patch stands for itself: error 0
    p was dropped       r of the kept patch nearest to p in grid coordinates, of equals the first in row order

0: nothing is lost. 1: as good as one mean of the slide for every patch. Above 1 is possible, and what dropping
does where neighbours differ. A slide whose patches are all equal has nothing to lose: 0. A pooler's patch is
counted into the slot that weighs it most. What last-layer fusion brings back counts as dropped.

This is k-means' within-group over total sum of squares, with dropped patches put into the nearest group.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.spatial import KDTree

from slimbench.cohorts.cohort import Cohort
from slimbench.errors import CohortError, UsageError
from slimbench.statistics.means import mean_estimate
from slimbench.task import Evidence, Task, TaskResult

EQUALS = 16  # as many cells of a grid lie equally near, up to 17 cells away


class Reconstruction(Task):
    """Squared distance of the patches to what stands for them, over that to the slide's mean."""

    needs_patches = True
    primary = "reconstruction_error"

    def check(self, cohort: Cohort) -> None:
        if not cohort.split("test"):
            raise CohortError(f"{cohort.name} has no test slides; reconstruction has nothing to measure")

    def run(self, evidence: Evidence) -> TaskResult:
        rows = []
        traces = evidence.traces("test")
        for slide in evidence.cohort.split("test"):
            if slide.id not in traces:
                raise UsageError(
                    f"{type(evidence.encoder).__name__} does not say where patches went; leave reconstruction out"
                )
            tokens = evidence.slide(slide.id).tokens
            token = traces[slide.id].token_of_patch().numpy()
            error = reconstruction_error(tokens.x.cpu().numpy(), tokens.coords.cpu().numpy(), token)
            dropped = float((token < 0).mean())
            rows.append(
                {"slide_id": slide.id, "patient": slide.patient, "error": error, "dropped_share": dropped}
            )
        table = pd.DataFrame(rows)
        fusion = any(trace.fusion is not None for trace in traces.values())
        found = mean_estimate(
            "reconstruction_error",
            table["error"].to_numpy(),
            table["patient"].tolist(),
            0,
            np.inf,
            "what last-layer fusion brings back counts as dropped" if fusion else None,
        )
        return TaskResult((found,), table, {"dropped_share": float(table["dropped_share"].mean())})


def reconstruction_error(
    x: NDArray[np.floating], coords: NDArray[np.floating], token: NDArray[np.int64]
) -> float:
    """The ratio above for one slide: x [P, D], coords [P, 2] grid units, token [P] (-1 = dropped)."""
    x = x.astype(np.float64)
    total = ((x - x.mean(axis=0)) ** 2).sum()
    if not total:
        return 0.0
    (kept,), (dropped,) = np.nonzero(token >= 0), np.nonzero(token < 0)
    stands = token.copy()
    if len(dropped):
        stands[dropped] = token[kept[nearest(coords[dropped], coords[kept])]]
    members = np.bincount(token[kept], minlength=token.max() + 1)
    sums = csr_array((np.ones(len(kept)), (token[kept], kept)), shape=(len(members), len(x))) @ x
    means = sums / np.maximum(members, 1)[:, None]
    return float(((x - means[stands]) ** 2).sum() / total)


def nearest(places: NDArray[np.floating], among: NDArray[np.floating]) -> NDArray[np.int64]:
    """[n] row of `among` [m, 2] that is nearest to each of `places` [n, 2], of equals the first."""
    distance, row = KDTree(among).query(places, k=list(range(1, 1 + min(EQUALS, len(among)))))
    equal = np.isclose(distance, distance[:, :1], rtol=1e-9, atol=0)
    first: NDArray[np.int64] = np.where(equal, row, len(among)).min(axis=1)
    return first
