"""The kept sets of one cohort's cells, measured slide by slide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from slimbench.analysis.pairs import Masks
from slimbench.analysis.paths import kept_reach, stand_at_patches, untrained
from slimbench.analysis.places import Advance, Place, places
from slimbench.analysis.quantities import measured
from slimbench.encoder import SlideEncoder
from slimbench.errors import CohortError, RecordError, SlimbenchError
from slimbench.leaderboard.rows import Row
from slimbench.runs.record import Record
from slimbench.runs.store import Store

Lefts = dict[str, NDArray[np.uint8]]
REACH_SLIDES = 40  # slides of a cell whose reach is measured, at equal steps of the test split


@dataclass
class Study:
    """What was found out, by the key of each record.

    slides   one row per slide: slide_id, patient, seed and the quantities that are defined for it
    masks    the final kept sets
    places   {slide id: Place}; empty where the cohort is gone
    notes    what could not be had, and why, each once
    """

    slides: dict[str, pd.DataFrame] = field(default_factory=dict)
    masks: dict[str, Masks] = field(default_factory=dict)
    places: dict[str, Place] = field(default_factory=dict)
    notes: dict[str, None] = field(default_factory=dict)

    def say(self, line: str) -> None:
        self.notes[line] = None

    def patient(self, slide: str) -> str:
        """Whose slide it is; its own where nobody knows."""
        return self.places[slide].patient if slide in self.places else slide


def study(store: Store, rows: Sequence[Row], advance: Advance) -> Study:
    """Measure the kept sets of all cells of `rows`, which are of one cohort.

    advance  is told (what is done, how many, of how many)
    """
    found = Study()
    cells = [record for row in rows for record in row.ok]
    dim = 0
    try:
        found.places, dim = places((record.cell.cohort for record in cells), rows[0].setting.data, advance)
    except CohortError as error:
        found.say(f"no coordinates, lesions, reach and patients, for want of the cohort: {error}")
    without = sum(place.coords is None for place in found.places.values())
    if without:
        found.say(
            f"no coverage, pieces and Moran's I on {without} of {len(found.places)} slides: no coordinates"
        )
    reaches = _Reaches(found, dim)
    missing = 0
    for number, record in enumerate(cells):
        advance("measuring kept sets", number, len(cells))
        lefts = _lefts(store, record, found)
        if not lefts or record.kept is None:
            missing += 1
            continue
        depth, fused = len(record.kept.tokens_per_block), _fused(record.kept.tokens_per_block)
        if fused:
            found.say(
                f"no last block of {record.cell.encoder} block by block: what left comes back before it, and kept "
                "and mean depth are of the blocks ahead"
            )
        reach = reaches.of(record, lefts)
        found.masks[record.key] = Masks.of(lefts, depth)
        found.slides[record.key] = pd.DataFrame(
            {
                "slide_id": slide,
                "patient": found.patient(slide),
                "seed": record.cell.seed,
                **measured(left, depth, found.places.get(slide, Place(slide, slide)), fused),
                **({"reach": reach[slide]} if slide in reach else {}),
            }
            for slide, left in lefts.items()
        )
    if missing:
        found.say(
            f"{missing} of {len(cells)} cells left no kept sets; slimbench sweep --rerun all writes them"
        )
    return found


def _fused(tokens_per_block: Sequence[float]) -> bool:
    """Whether tokens came back before the last block (slimbench.fusion): nothing else adds any."""
    return len(tokens_per_block) > 1 and tokens_per_block[-1] > tokens_per_block[-2]


def _lefts(store: Store, record: Record, found: Study) -> Lefts:
    try:
        return {slide: left for slide, left in store.kept_sets(record.key).items() if len(left)}
    except RecordError as error:
        found.say(str(error))
        return {}


@dataclass
class _Reaches:
    """Reach of the kept patches of each cell; encoders are built once."""

    found: Study
    dim: int
    encoders: dict[str, SlideEncoder | None] = field(default_factory=dict)

    def of(self, record: Record, lefts: Lefts) -> dict[str, float]:
        """{slide id: reach} of up to REACH_SLIDES slides; {} with a note where it cannot be had."""
        assert record.kept is not None
        if not self.found.places:
            return {}
        cell, tokens = record.cell, record.kept.tokens_per_block
        if "order=score" in cell.reducer or not stand_at_patches(list(lefts.values()), tokens):
            self.found.say(
                f"no reach of {cell.reducer}: its tokens leave by score, stand at no patch or come back"
            )
            return {}
        encoder = self._encoder(cell.encoder)
        if encoder is None:
            return {}
        chosen = list(lefts)[:: -(-len(lefts) // REACH_SLIDES)]
        reach = {slide: kept_reach(encoder, lefts[slide], len(tokens)) for slide in chosen}
        if None in reach.values():
            self.found.say(f"no reach in {cell.encoder}: it does not state what its blocks read")
        return {slide: share for slide, share in reach.items() if share is not None}

    def _encoder(self, spec: str) -> SlideEncoder | None:
        if spec not in self.encoders:
            try:
                self.encoders[spec] = untrained(spec, self.dim)
            except SlimbenchError as error:
                self.found.say(f"no reach in {spec}: {error}")
                self.encoders[spec] = None
        return self.encoders[spec]
