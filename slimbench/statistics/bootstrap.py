"""Weightings of test slides by whole patients: the bootstrap and the jackknife.

Slides of one patient are no independent evidence: on TCGA-OT the spread of an accuracy over patients is
20 % above that over slides. Classes that a resample misses are left out of its means; it is never redrawn.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from slimbench.seeds import seed_of
from slimbench.statistics.metrics import IntArray, Weighting

DRAWS = 10_000


def groups_of(patients: Sequence[str]) -> IntArray:
    """[n] index of each slide's patient, patients numbered in sorted order."""
    group: IntArray = np.unique(np.asarray(patients, dtype=str), return_inverse=True)[1]
    return group


def bootstrap(patients: Sequence[str], draws: int = DRAWS) -> Weighting:
    """`draws` resamples of G patients with replacement, as multinomial counts [draws, G].

    Seeded by the patients themselves: the same slides are drawn for every system measured on them, so
    that differences are paired, and again when a stored prediction is scored anew.
    """
    group = groups_of(patients)
    count = int(group.max()) + 1
    generator = np.random.default_rng(seed_of("bootstrap", draws, *patients))
    weights = np.empty((draws, count), dtype=np.float32)
    for row in weights:  # eight times faster than Generator.multinomial
        row[:] = np.bincount(generator.integers(0, count, count), minlength=count)
    return Weighting(weights, group)


def jackknife(patients: Sequence[str]) -> Weighting:
    """G weightings; in the g-th every patient but g counts once."""
    group = groups_of(patients)
    count = int(group.max()) + 1
    return Weighting(1 - np.eye(count, dtype=np.float32), group)
