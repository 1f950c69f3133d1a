"""Which patches two cells keep in common, slide by slide, and which rows are compared with each other.

reducers   two reducers at one rate, by the same seed
rates      one reducer at two rates, by the same seed: is what a high rate keeps within what a low one keeps?
seeds      one row's seeds with each other: how much of a kept set is chance
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from slimbench.analysis.quantities import INF, Quantity
from slimbench.leaderboard.rows import Row
from slimbench.statistics.metrics import IntArray
from slimbench.statistics.overlap import chance_corrected, chance_union, intersection_over_union, nestedness

KAPPA, UNION, CHANCE = Quantity("kappa", -INF, 1), Quantity("iou"), Quantity("iou_by_chance")
NESTED, NESTED_CHANCE = Quantity("nested"), Quantity("nested_by_chance")
OVERLAPS = (KAPPA, UNION, CHANCE)
NESTINGS = (NESTED, NESTED_CHANCE, *OVERLAPS)


Kind = Literal["reducers", "rates", "seeds"]


@dataclass(frozen=True)
class Masks:
    """The patches that one cell keeps to the end, as bits: 1.6 MB for 750 slides of 17,182 patches.

    slides   ids, of slides that have patches
    starts   [n] where each slide's bits begin, in bytes
    patches  [n] of each slide, and `sizes` [n] how many are kept
    """

    slides: tuple[str, ...]
    bits: NDArray[np.uint8]
    starts: IntArray
    patches: IntArray
    sizes: IntArray

    @classmethod
    def of(cls, lefts: Mapping[str, NDArray[np.uint8]], depth: int) -> Masks:
        """lefts {slide id: [P] as Trace.left}, P > 0."""
        kept = [left >= depth for left in lefts.values()]
        packed = [np.packbits(mask) for mask in kept]
        ends = np.cumsum([len(part) for part in packed])
        return cls(
            tuple(lefts),
            np.concatenate(packed),
            ends - [len(part) for part in packed],
            np.array([len(mask) for mask in kept]),
            np.array([mask.sum() for mask in kept]),
        )

    def common(self, other: Masks) -> IntArray:
        """[n] patches of each slide that both keep; both are of the same slides."""
        found: IntArray = np.add.reduceat(
            np.bitwise_count(self.bits & other.bits), self.starts, dtype=np.int64
        )
        return found


@dataclass(frozen=True)
class Pair:
    """Two rows to compare, the same one for `seeds`; of two rates, `first` has the higher."""

    kind: Kind
    first: Row
    second: Row

    def cells(self, masks: Mapping[str, Masks]) -> Iterator[tuple[str, Masks, Masks]]:
        """(seed or pair of seeds, kept sets of either cell), of cells that left any."""
        one, two = (
            {record.cell.seed: masks[record.key] for record in row.ok if record.key in masks}
            for row in (self.first, self.second)
        )
        if self.kind == "seeds":
            for a, b in combinations(one, 2):
                yield f"{a}, {b}", one[a], one[b]
            return
        for seed in one:
            if seed in two:
                yield str(seed), one[seed], two[seed]


def pairs(rows: Sequence[Row]) -> Iterator[Pair]:
    """Every pair of rows that can be read against each other."""
    for row in rows:
        if row.seeds > 1:
            yield Pair("seeds", row, row)
    for one, two in combinations(rows, 2):
        a, b = one.setting, two.setting
        if replace(a, reducer=b.reducer) == b:
            yield Pair("reducers", one, two)
        same_model = a.trained_at == b.trained_at
        by_rate = same_model or not (a.one_model or b.one_model)
        if by_rate and a.rate != b.rate and _but_rate(one) == _but_rate(two):
            yield Pair("rates", *((one, two) if a.rate > b.rate else (two, one)))


def _but_rate(row: Row) -> object:
    return replace(row.setting, rate=0.0, trained_at=0.0, one_model=False)


def overlaps(pair: Pair, masks: Mapping[str, Masks], patient: Callable[[str], str]) -> pd.DataFrame | None:
    """Per slide and seed the values of NESTINGS, NaN where undefined, with columns slide_id, patient and seed as
    `pooled` takes them; None where the two have no seed in common."""
    frames = []
    for seed, one, two in pair.cells(masks):
        both, a, b, n = one.common(two), one.sizes, two.sizes, one.patches
        values = {
            KAPPA: chance_corrected(both, a, b, n),
            UNION: intersection_over_union(both, a, b),
            CHANCE: chance_union(a, b, n),
            NESTED: nestedness(both, a),
            NESTED_CHANCE: nestedness(b, n),
        }
        frame = pd.DataFrame({quantity.name: value for quantity, value in values.items()})
        patients = [patient(slide) for slide in one.slides]
        frames.append(frame.assign(slide_id=one.slides, patient=patients, seed=seed))
    return pd.concat(frames, ignore_index=True) if frames else None
