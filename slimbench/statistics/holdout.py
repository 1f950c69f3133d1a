"""Made splits: patient-disjoint, stratified, seeded."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from slimbench.seeds import seed_of


def holdout(
    labels: NDArray[np.int64], patients: Sequence[str], share: float, *seed: object
) -> NDArray[np.bool_]:
    """[n] bool: the slides to hold out, whole patients, about `share` of the slides of each class.

    A patient belongs to the rarest of its classes. In each class patients are drawn until one more would
    take it further from its share; at least one patient of each class stays, so none disappears.
    """
    names, owner = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
    frequency = np.bincount(labels)
    order = np.lexsort((labels, frequency[labels]))  # rarest class first
    stratum = np.empty(len(names), dtype=np.int64)
    stratum[owner[order[::-1]]] = labels[order[::-1]]
    slides = np.bincount(owner)
    generator = np.random.default_rng(seed_of("holdout", share, *seed))
    held = np.zeros(len(names), dtype=bool)
    for label in np.unique(stratum):
        members = generator.permutation(np.flatnonzero(stratum == label))
        wanted, taken = share * slides[members].sum(), 0
        for patient in members[:-1]:
            if taken + slides[patient] / 2 > wanted:
                break
            held[patient], taken = True, taken + slides[patient]
    result: NDArray[np.bool_] = held[owner]
    return result
