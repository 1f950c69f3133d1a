"""Making splits: patient-disjoint or site-disjoint, stratified by class, seeded, written to a file.

    slimbench data split cohort.toml --out splits.csv

The cohort file then names the table: `[splits] table = "splits.csv"`.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from slimbench.cohorts.cohort import SPLITS, Slide
from slimbench.errors import CohortError, UsageError
from slimbench.files import replacing


@dataclass(frozen=True)
class SplitRule:
    """How splits are made.

    fractions  of slides in train, val and test
    minimum    classes with fewer slides are left out before splitting (SLIM: 10 on TCGA, 30 on EBRAINS)
    by         what no two splits may share: patients, or tissue source sites (and so patients)
    seed       of the order in which patients are dealt
    """

    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)
    minimum: int = 10
    by: Literal["patient", "site"] = "patient"
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.fractions) < 0 or abs(sum(self.fractions) - 1) > 1e-6 or self.fractions[0] == 0:
            raise UsageError(f"fractions of train, val and test must add up to 1, got {self.fractions}")


def make_splits(slides: Sequence[Slide], rule: SplitRule) -> dict[str, str]:
    """{slide id: split} of the slides whose class is large enough; unlabelled slides count as a class.

    Iterative stratification (Sechidis et al. 2011) over patients or sites: those with the rarest class
    first, each to the split that still wants most of that class. Raises CohortError for a slide
    without a site, a patient of two sites, or a split that gets no slide.
    """
    sizes = Counter(slide.label for slide in slides if slide.label is not None)
    kept = [slide for slide in slides if slide.label is None or sizes[slide.label] >= rule.minimum]
    if not kept:
        raise CohortError(f"no class has {rule.minimum} slides; lower the minimum")
    groups: dict[str, list[Slide]] = {}
    for slide in sorted(kept, key=lambda slide: slide.id):
        groups.setdefault(_unit(slide, rule.by), []).append(slide)
    if rule.by == "site":
        _check_sites(kept)
    names, classes = sorted(groups), sorted({str(slide.label) for slide in kept})
    counts = np.zeros((len(names), len(classes)))
    for row, name in enumerate(names):
        for slide in groups[name]:
            counts[row, classes.index(str(slide.label))] += 1
    dealt = _deal(counts, np.array(rule.fractions), np.random.default_rng(rule.seed))
    splits = {slide.id: SPLITS[dealt[row]] for row, name in enumerate(names) for slide in groups[name]}
    for split, fraction in zip(SPLITS, rule.fractions, strict=True):
        if fraction and split not in splits.values():
            raise CohortError(
                f"{split} gets no slide: {len(kept)} slides of {len(names)} {rule.by}s are too few for "
                f"{fraction:.0%} there; lower the minimum of {rule.minimum} slides a class, or change the fractions"
            )
    return splits


def write_splits(path: Path, splits: dict[str, str], rule: SplitRule) -> None:
    """Write `slide_id,split` rows to `path`, and the rule beside it as JSON."""
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("slide_id", "split"))
        writer.writerows(sorted(splits.items()))
    with replacing(path.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps(asdict(rule), indent=2) + "\n", encoding="utf-8")


def _deal(counts: np.ndarray, fractions: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Split of each group [G] int, from its slides per class [G, C]."""
    total = counts.sum(axis=0)
    wanted = np.outer(fractions, total)  # [splits, C] slides still wanted
    order = rng.permutation(len(counts))
    rarest = np.where(counts > 0, total, np.inf).argmin(axis=1)
    order = order[np.lexsort((-counts[order, rarest[order]], total[rarest[order]]))]
    dealt = np.empty(len(counts), dtype=int)
    for group in order:
        want = wanted[:, rarest[group]]
        best = np.flatnonzero((want == want.max()) & (fractions > 0))
        dealt[group] = best[np.argmax(wanted[best].sum(axis=1))]
        wanted[dealt[group]] -= counts[group]
    return dealt


def _unit(slide: Slide, by: str) -> str:
    if by == "patient":
        return slide.patient
    if slide.site is None:
        raise CohortError(
            f'slide {slide.id} has no site; name the column as site = "..." in [slides] and fill it'
        )
    return slide.site


def _check_sites(slides: Sequence[Slide]) -> None:
    site: dict[str, Slide] = {}
    for slide in slides:
        other = site.setdefault(slide.patient, slide)
        if other.site != slide.site:
            raise CohortError(
                f"patient {slide.patient} has slides of two sites, {other.site} ({other.id}) and "
                f"{slide.site} ({slide.id}); split by patient, or correct the table"
            )
