"""What is said of one slide's kept set, and what is said of many.

    lesion_recall      share of lesion patches that are kept to the end
    lesion_enrichment  lesion recall over the share of all patches kept, a ratio of means as in the task saliency
    coverage           distance to the nearest kept patch over the same for random sets of equal size
    pieces_kept        share of tissue pieces with a kept patch
    raster_bias        mean rank of the kept along the rows minus one half
    mean_depth         blocks that a patch goes through, mean over patches
    morans_i           of the kept mask: whether kept patches lie together
    reach              share of the kept that [CLS] can know of

Formulas and sources stand in slimbench.statistics.kept and .spread and slimbench.analysis.paths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from slimbench.analysis.places import Place
from slimbench.statistics.estimates import Metric
from slimbench.statistics.kept import mean_depth, raster_bias, survival
from slimbench.statistics.means import mean_estimate, share_estimate
from slimbench.statistics.metrics import FloatArray
from slimbench.statistics.spread import mean_distance, morans_i, pieces_kept

INF = float("inf")


@dataclass(frozen=True)
class Quantity:
    """A column: its name, the range of its values on one slide, and what it is divided by, mean by mean."""

    name: str
    least: float = 0.0
    most: float = 1.0
    over: str | None = None


QUANTITIES = (
    Quantity("lesion_recall"),
    Quantity("lesion_enrichment", 0, INF, over="kept_share"),
    Quantity("coverage", 0, INF),
    Quantity("pieces_kept"),
    Quantity("raster_bias", -0.5, 0.5),
    Quantity("mean_depth", 0, INF),
    Quantity("morans_i", -INF, INF),
    Quantity("reach"),
)
OF_ALL, OF_LESION = "patches_before", "lesion_before"  # and a block, counted from 1: shares that enter it


@dataclass(frozen=True)
class Pooled:
    """A quantity of a row or of a pair of rows.

    metric  mean over slides of each slide's mean over seeds, with its 95 % interval over patients
    spread  standard deviation over the seeds' means; None for one seed
    """

    metric: Metric
    spread: float | None


def measured(left: NDArray[np.uint8], depth: int, place: Place, fused: bool = False) -> dict[str, float]:
    """Quantities of one slide but its reach, by name; those that are undefined or unknown are left out.

    left [P] and depth as in slimbench.statistics.kept; P > 0
    fused    what left comes back before the last block: `left` does not say what enters it, so nothing is said
    """
    blocks = depth - fused
    kept = left >= depth
    found = {
        "kept_share": float(kept.mean()),
        "mean_depth": mean_depth(left, depth),
        "raster_bias": raster_bias(kept),
        **_by_block(OF_ALL, survival(left, blocks)),
    }
    if place.coords is not None and kept.any():
        found["pieces_kept"] = pieces_kept(place.piece, kept)
        found["morans_i"] = morans_i(kept, place.pairs)
        random = place.random_distance(int(kept.sum()))
        if random > 0:  # else all are kept, or all stand at one place
            found["coverage"] = mean_distance(place.coords, kept) / random
    if place.lesion is not None and kept.any():
        recall = float(kept[place.lesion].mean())
        found |= {"lesion_recall": recall, "lesion_enrichment": recall}
        found |= _by_block(OF_LESION, survival(left[place.lesion], blocks))
    return {name: value for name, value in found.items() if not np.isnan(value)}


def _by_block(name: str, values: FloatArray) -> dict[str, float]:
    return {f"{name}_{block}": float(value) for block, value in enumerate(values, start=1)}


def pooled(quantities: Sequence[Quantity], slides: pd.DataFrame) -> dict[str, Pooled]:
    """Each quantity that is defined on any of `slides`: a row per slide and seed, with columns patient, slide_id,
    seed, and the quantities' names and what they are over, NaN where undefined."""
    columns = [quantity.name for quantity in quantities if quantity.name in slides]
    by_slide = slides.groupby(["patient", "slide_id"])[columns].mean()
    by_seed = slides.groupby("seed")[columns].mean()
    patients = by_slide.index.get_level_values("patient").to_numpy()
    found = {}
    for quantity in quantities:
        if quantity.name not in by_slide:
            continue
        values, seeds = by_slide[quantity.name].to_numpy(np.float64), by_seed[quantity.name]
        known = ~np.isnan(values)
        values, whose = values[known], patients[known].tolist()
        if not len(values):
            continue
        if quantity.over:
            over = slides[quantity.over].where(slides[quantity.name].notna())  # of the same slides
            below = over.groupby([slides["patient"], slides["slide_id"]]).mean().to_numpy(np.float64)[known]
            ratio = values.mean() / below.mean()
            values = ratio + (values - ratio * below) / below.mean()  # of this mean, and the linearised error
            seeds = seeds / over.groupby(slides["seed"]).mean()
        if (quantity.least, quantity.most) == (0, 1):
            metric = share_estimate(quantity.name, values, whose)
        else:
            metric = mean_estimate(quantity.name, values, whose, quantity.least, quantity.most)
        seeds = seeds.dropna()
        found[quantity.name] = Pooled(metric, float(seeds.std(ddof=1)) if len(seeds) > 1 else None)
    return found
