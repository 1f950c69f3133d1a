"""Where the patches of the test slides lie, read from the cohort once for all cells."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from slimbench.cohorts import open_cohort
from slimbench.errors import CohortError
from slimbench.seeds import seed_of
from slimbench.statistics.metrics import IntArray
from slimbench.statistics.spread import mean_distance_of_random, neighbours, pieces

RANDOM_DRAWS = 10  # random sets that a slide's coverage is read against

Advance = Callable[[str, int, int], None]  # what is done, how many of it, of how many


@dataclass(frozen=True)
class Place:
    """One slide: whose it is, [P, 2] grid coordinates and [P] bool lesion; None where nobody knows them.

    A lesion of no patch or of every patch says nothing of a reducer, and is None.
    """

    id: str
    patient: str
    coords: NDArray[np.float32] | None = None
    lesion: NDArray[np.bool_] | None = None
    _random: dict[int, float] = field(default_factory=dict, repr=False)

    @cached_property
    def pairs(self) -> IntArray:
        """[M, 2] neighbouring patches."""
        assert self.coords is not None
        return neighbours(self.coords)

    @cached_property
    def piece(self) -> IntArray:
        """[P] the piece of tissue of each patch."""
        assert self.coords is not None
        return pieces(len(self.coords), self.pairs)

    def random_distance(self, count: int) -> float:
        """Mean distance to the nearest of `count` random patches; the same ones for every cell."""
        assert self.coords is not None
        if count not in self._random:
            seed = seed_of("coverage", self.id, count)
            self._random[count] = mean_distance_of_random(self.coords, count, RANDOM_DRAWS, seed)
        return self._random[count]


def places(cohorts: Iterable[str], fingerprint: str, advance: Advance) -> tuple[dict[str, Place], int]:
    """({slide id: Place} of the test slides, width of the features) from the first of `cohorts`, names or
    files, that is the one of `fingerprint`.

    Raises CohortError where there is none any more, or its features cannot be read.
    """
    why = "no cohort is named"
    for name in dict.fromkeys(cohorts):
        try:
            cohort = open_cohort(name)
        except CohortError as error:
            why = str(error)
            continue
        if cohort.fingerprint != fingerprint:
            why = f"{name} has changed since the sweep"
            continue
        found = {}
        slides = cohort.split("test")
        for number, slide in enumerate(slides):
            advance("reading coordinates", number, len(slides))
            patches = cohort.patches(slide.id)
            lesion = patches.lesion
            known = lesion is not None and lesion.any() and not lesion.all()
            found[slide.id] = Place(slide.id, slide.patient, patches.coords, lesion if known else None)
        return found, cohort.dim
    raise CohortError(why)
