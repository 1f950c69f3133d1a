"""What there is to draw: the kept sets of a results folder at the places where the slide's patches lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from slimbench.cohorts import open_cohort
from slimbench.cohorts.cohort import Cohort, Slide
from slimbench.cohorts.findings import nearest
from slimbench.cohorts.table import TableCohort
from slimbench.errors import CohortError, RecordError, UsageError
from slimbench.runs.grid import NO_REDUCER
from slimbench.runs.record import Record
from slimbench.runs.store import Store
from slimbench.schedule import own_schedule
from slimbench.spec import Spec
from slimbench.trace import STAYED


@dataclass(frozen=True)
class KeptMap:
    """How far the patches of one slide went in one cell.

    left        [P] uint8: the block ahead of which a patch left, STAYED for those kept to the end
    coords      [P, 2] float32, upper left corners in grid units
    lesion      [P] bool, or None where nobody knows
    patch_size  level-0 pixels in a grid unit, or None (Patches.patch_size)
    thumbnail   a picture of the slide that lies beside its features, or None
    """

    slide: Slide
    record: Record
    left: NDArray[np.uint8]
    coords: NDArray[np.float32]
    lesion: NDArray[np.bool_] | None = None
    patch_size: float | None = None
    thumbnail: Path | None = None

    @property
    def exits(self) -> tuple[int, ...]:
        """The blocks ahead of which patches left, in order; STAYED, where some did, is the last."""
        return tuple(map(int, np.unique(self.left)))

    @property
    def kept(self) -> NDArray[np.bool_]:
        """[P] bool: the patches kept to the end."""
        return self.left == STAYED


def exit_name(left: int) -> str:
    """When patches left, in words.

    >>> exit_name(0), exit_name(2), exit_name(255)
    ('left at the input', 'left after block 2', 'kept to the end')
    """
    if left == STAYED:
        return "kept to the end"
    return f"left after block {left}" if left else "left at the input"


def kept_maps(
    store: Store,
    records: Sequence[Record],
    slides: Sequence[str],
    reducers: Sequence[str] = (),
    rates: Sequence[float] = (),
    seed: int | None = None,
) -> list[tuple[KeptMap, ...]]:
    """For each of `slides` its maps in the chosen cells; each cell once, the last record of equal ones.

    reducers  as in a sweep, `input(tome)` included; (): all but `none`
    rates     (): all
    seed      None: the lowest that the chosen cells have

    Raises UsageError for a name or number that no cell has, RecordError where there are no kept sets,
    CohortError where the cohort is gone, has changed, or has no coordinates for a slide.
    """
    chosen = [record for record in records if record.status == "ok"]
    chosen = _of_reducers(chosen, reducers, store.out)
    if rates:
        chosen = [record for record in chosen if record.cell.rate in rates]
    seeds = sorted({record.cell.seed for record in chosen})
    if seed is None and seeds:
        seed = seeds[0]
    chosen = [record for record in chosen if record.cell.seed == seed]
    if not chosen:
        known = sorted({f"{r.cell.reducer} {r.cell.rate:g}" for r in records if r.status == "ok"})
        raise UsageError(
            f"no finished cell of {store.out} has these reducers, rates and seed"
            f"{f'; seeds are {seeds}' if seeds else ''}; cells: {', '.join(known) or 'none'}"
        )
    ended = sorted(chosen, key=lambda record: record.ended)
    chosen = list({record.cell.model_copy(update={"tasks": ()}): record for record in ended}.values())
    lefts = {record.key: found for record in chosen if (found := store.kept_sets(record.key))}
    if not lefts:
        raise RecordError(f"{store.out} holds no kept sets; slimbench sweep ... --rerun all writes them")
    there = sorted({slide for found in lefts.values() for slide in found})
    cohorts = {name: open_cohort(name) for name in dict.fromkeys(record.cell.cohort for record in chosen)}
    maps = []
    for slide in slides:
        if slide not in there:
            raise UsageError(f"no test slide of {store.out} is called {slide!r}; {_some(slide, there)}")
        cells = [record for record in chosen if slide in lefts.get(record.key, {})]
        maps.append(
            tuple(
                _placed(record, cohorts[record.cell.cohort], slide, lefts[record.key][slide])
                for record in cells
            )
        )
    return maps


def _of_reducers(records: list[Record], reducers: Sequence[str], out: Path) -> list[Record]:
    if not reducers:
        return [record for record in records if Spec.parse(record.cell.reducer).name != NO_REDUCER]
    wanted = []
    known = sorted({record.cell.reducer for record in records})
    for text in reducers:
        inner, schedule = own_schedule(text, "")
        inner = str(Spec.parse(inner))
        fitting = [
            record
            for record in records
            if record.cell.reducer == inner and schedule in ("", record.cell.schedule)
        ]
        if not fitting:
            raise UsageError(f"no finished cell of {out} has reducer {text!r}; {nearest(text, known)}")
        wanted += fitting
    return wanted


def _some(slide: str, there: Sequence[str]) -> str:
    """The slides with the nearest names, or the first of all."""
    said = nearest(slide, there)
    return (
        said
        if said.startswith("did you mean")
        else f"it has {', '.join(there[:3])}, ... ({len(there)} in all)"
    )


def _placed(record: Record, cohort: Cohort, slide_id: str, left: NDArray[np.uint8]) -> KeptMap:
    if cohort.fingerprint != record.identity.cohort:
        raise CohortError(
            f"{record.cell.cohort} has changed since the sweep, so nobody knows which patch is which; "
            "run the sweep again"
        )
    patches = cohort.patches(slide_id)
    if patches.coords is None:
        raise CohortError(
            f"slide {slide_id} of {cohort.name} has no coordinates, so its patches have no place; "
            "extract features that come with coordinates"
        )
    (slide,) = (slide for slide in cohort.slides if slide.id == slide_id)
    lesion = patches.lesion if patches.lesion is not None and patches.lesion.any() else None
    return KeptMap(
        slide, record, left, patches.coords, lesion, patches.patch_size, _thumbnail(cohort, slide_id)
    )


def _thumbnail(cohort: Cohort, slide_id: str) -> Path | None:
    """TRIDENT's `<job>/thumbnails/<slide>.jpg`, beside `<job>/<patching>/<features>/<slide>.h5`."""
    if not isinstance(cohort, TableCohort):
        return None
    file, name = cohort.files[slide_id]
    above = file.path.resolve().parents
    picture = above[min(2, len(above) - 1)] / "thumbnails" / f"{name}.jpg"
    return picture if picture.is_file() else None
