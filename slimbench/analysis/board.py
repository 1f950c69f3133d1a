"""The analyses of a results folder as tables: what is kept, layer by layer, in common, and whose class changes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from slimbench.analysis.flips import FLIPS, flips
from slimbench.analysis.lines import SEEDS, SLIDES, Heading, Line, ends, estimated, mean, table
from slimbench.analysis.pairs import (
    CHANCE,
    KAPPA,
    NESTED,
    NESTED_CHANCE,
    NESTINGS,
    OVERLAPS,
    UNION,
    Kind,
    overlaps,
    pairs,
)
from slimbench.analysis.places import RANDOM_DRAWS, Advance
from slimbench.analysis.quantities import OF_ALL, OF_LESION, QUANTITIES, Quantity, pooled
from slimbench.analysis.study import REACH_SLIDES, Study, study
from slimbench.errors import RecordError, UsageError
from slimbench.leaderboard.compare import Reader, probed, reader
from slimbench.leaderboard.rows import Row, rows
from slimbench.leaderboard.table import Cell, Column, Table, words
from slimbench.runs.record import Record
from slimbench.runs.store import Store

STANDING = (
    "a patch is kept while a token stands at it: of a merged group one patch is, the others count as gone (the task "
    "saliency follows what is in the token)"
)
NOTES = (
    "95 % slides: interval over patients of each slide's mean over seeds; ± seeds: standard deviation over seeds",
    STANDING,
)
ONE_SEED = "1 seed: the intervals are over slides and say nothing of another training"
COVERAGE = (
    f"coverage: distance to the nearest kept patch over that of {RANDOM_DRAWS} random sets of equal size; "
    "above 1 patches are clumped, below 1 strewn more evenly than at random"
)
WHAT = (
    "mean depth: blocks that a patch goes through before it leaves",
    COVERAGE,
    "raster bias: mean rank of the kept along the rows minus one half, so negative at the slide's first rows",
    f"reach: share of the kept that [CLS] can know of, on at most {REACH_SLIDES} slides",
)
SHARED = "kappa: patches in common beyond chance, 1 where one set lies in the other, 0 at chance"
FLIPPED = (
    "flips: slides whose predicted class differs from that of the whole slide, same encoder and seed; the row without "
    "a reducer is its seeds against each other"
)
NO_PATCH = "its tokens stand at no patch"


@dataclass(frozen=True)
class Analysis:
    """tables  for people
    slides  what they rest on: a row per cell and slide, columns cohort, encoder, reducer, rate, schedule, seed,
            slide_id, patient, cell (the record's key) and the quantities"""

    tables: tuple[Table, ...]
    slides: pd.DataFrame


def analyse(
    store: Store,
    records: Iterable[Record],
    reducers: Sequence[str] = (),
    advance: Advance = lambda what, done, total: None,
) -> Analysis:
    """Analyse what `records`, whose kept sets and predictions lie in `store`, say of their reducers.

    reducers  only these, as their rows are called; () for all
    advance   is told (what is done, how many, of how many)

    What cannot be had (no kept sets, a cohort that is gone) is left out and said in a note of the first table.
    Raises UsageError for a reducer that nobody ran, RecordError where there is nothing to analyse at all.
    """
    every = [row for row in rows(records) if row.ok]
    known = sorted({row.setting.reducer for row in every})
    for name in reducers:
        if name not in known:
            raise UsageError(f"no record has the reducer {name!r}; they have {', '.join(known) or 'none'}")
    tables: list[Table] = []
    slides: list[pd.DataFrame] = []
    left_out: list[tuple[str, str]] = []
    for data in dict.fromkeys(row.setting.data for row in every):
        others = [row for row in every if row.setting.data == data]
        shown = [row for row in others if not reducers or row.setting.reducer in reducers]
        cohort = others[0].setting.cohort
        versions = {row.setting.data for row in every if row.setting.cohort == cohort}
        name = f"{cohort} (data {data[:8]})" if len(versions) > 1 else cohort
        board = _Board(name, shown, others, reader(store.out), store, advance)
        made = board.tables()
        tables += made
        slides += board.slides()
        left_out += [(name, note) for note in board.study.notes if not made]
    if not tables:
        why = "; ".join(note for _, note in left_out) or "no reducer has a finished cell"
        raise RecordError(f"{store.out} holds nothing to analyse: {why}")
    said = [f"{name}: {note}" for name, note in left_out]
    tables[0] = replace(tables[0], notes=(*tables[0].notes, *said))
    return Analysis(tuple(tables), pd.concat(slides, ignore_index=True) if slides else pd.DataFrame())


class _Board:
    """The tables of one cohort. shown: its rows; others: all of them, among them the unpruned ones."""

    def __init__(
        self,
        name: str,
        shown: Sequence[Row],
        others: Sequence[Row],
        read: Reader,
        store: Store,
        advance: Advance,
    ) -> None:
        self.name = name
        self.shown, self.others, self.read = shown, others, read
        self.reduced = [row for row in shown if not (row.setting.is_baseline or row.setting.is_unpruned)]
        self.study = study(store, self.reduced, advance) if self.reduced else Study()
        self.probe = next(iter(probed(others)), None)

    def tables(self) -> list[Table]:
        """In the order in which they are read; one without a row is left out."""
        kept = [self._kept(row) for row in self.reduced if self._frames(row)]
        shared: dict[Kind, list[Line]] = {"reducers": [], "rates": [], "seeds": []}
        for pair in pairs(self.reduced):
            found = overlaps(pair, self.study.masks, self.study.patient)
            if found is not None:
                shared[pair.kind].append(_line(pair.first, found, NESTINGS, pair.second))
        flipped = [line for row in self.shown if (line := self._flipped(row)) is not None]
        made = [
            *([self._kept_table(kept), self._by_block(kept)] if kept else []),
            *([self._of_reducers(shared["reducers"])] if shared["reducers"] else []),
            *([self._of_rates(shared["rates"])] if shared["rates"] else []),
            *([self._of_seeds(shared["seeds"])] if shared["seeds"] else []),
            *([self._flips_table(flipped)] if flipped else []),
        ]
        if made:
            made[0] = replace(made[0], notes=(*made[0].notes, *self.study.notes))
        return made

    def slides(self) -> list[pd.DataFrame]:
        """The quantities of each slide, cell by cell."""
        frames = []
        for row in self.reduced:
            s = row.setting
            named = {"cohort": self.name, "encoder": s.encoder, "reducer": s.reducer, "rate": s.rate}
            named |= {"schedule": s.schedule}
            for record in row.ok:
                if record.key in self.study.slides:
                    frame = self.study.slides[record.key]
                    frames.append(pd.DataFrame({**named, "cell": record.key}, index=frame.index).join(frame))
        return frames

    def _frames(self, row: Row) -> list[pd.DataFrame]:
        return [self.study.slides[record.key] for record in row.ok if record.key in self.study.slides]

    def _kept(self, row: Row) -> Line:
        slides = pd.concat(self._frames(row), ignore_index=True)
        by_block = [Quantity(str(name)) for name in slides if str(name).startswith((OF_ALL, OF_LESION))]
        marks = [] if slides["kept_share"].any() else [NO_PATCH]
        return _line(row, slides, (*QUANTITIES, *by_block), marks=marks)

    def _kept_table(self, lines: Sequence[Line]) -> Table:
        headings = [SEEDS, SLIDES]
        for place, quantity in enumerate(QUANTITIES):
            headings += estimated(quantity, int(place > 4))
        one_seed = [ONE_SEED] if any(line.seeds == 1 for line in lines) else []
        return table(f"{self.name}: what is kept", lines, headings, (*NOTES, *one_seed, *WHAT))

    def _by_block(self, lines: Sequence[Line]) -> Table:
        """Shares of all patches and of the lesion's that enter each block."""
        depth = max(sum(name.startswith(OF_ALL) for name in line.found) for line in lines)
        blocks = range(1, depth + 1)
        headings = [SEEDS]
        headings += [mean(Quantity(f"{OF_ALL}_{b}"), f"block {b}", "patches that enter", 0) for b in blocks]
        for b in blocks:
            of_lesion = Quantity(f"{OF_LESION}_{b}")
            headings.append(mean(of_lesion, f"block {b}", "lesion that enters", 0))
            headings.append(ends(of_lesion, f"95 % block {b}", "lesion that enters", 1))
        note = "the share of all patches is what a random set of equal size keeps of the lesion"
        return table(f"{self.name}: block by block", lines, headings, (note,))

    def _of_reducers(self, lines: Sequence[Line]) -> Table:
        ordered = sorted(lines, key=_by_rate_and_kappa)
        headings = [_other("reducer"), SEEDS, SLIDES, *_estimates(OVERLAPS)]
        return table(f"{self.name}: in common between reducers", ordered, headings, (SHARED,), ("kept",))

    def _of_rates(self, lines: Sequence[Line]) -> Table:
        headings = [_other("rate"), SEEDS, SLIDES, *_estimates(NESTINGS)]
        note = "nested: share of what is kept at the higher pruning rate that is kept at the lower one too"
        return table(f"{self.name}: in common between rates", lines, headings, (note, SHARED), ("kept",))

    def _of_seeds(self, lines: Sequence[Line]) -> Table:
        headings = [(Column("pairs of seeds"), SEEDS[1]), SLIDES, *_estimates(OVERLAPS, spread=False)]
        return table(f"{self.name}: in common between seeds", lines, headings, (SHARED,))

    def _flipped(self, row: Row) -> Line | None:
        if self.probe is None or row.setting.is_baseline:
            return None
        found = flips(row, self.others, self.probe, self.read)
        if found is None:
            return None
        if not row.setting.is_unpruned:
            return _line(row, found, FLIPS)
        # Pairs of seeds share seeds, so their spread says nothing, and which of two lost is the order of seeds.
        line = _line(row, found, FLIPS[:1])
        alone = {name: replace(pooled, spread=None) for name, pooled in line.found.items()}
        return replace(line, found=alone, seeds=row.seeds)

    def _flips_table(self, lines: Sequence[Line]) -> Table:
        headings = [SEEDS, SLIDES, *(h for quantity in FLIPS for h in estimated(quantity, 0))]
        return table(f"{self.name}: flips of {self.probe}", lines, headings, (FLIPPED,))


def _line(
    row: Row,
    slides: pd.DataFrame,
    quantities: Sequence[Quantity],
    other: Row | None = None,
    marks: Sequence[str] = (),
) -> Line:
    counts = slides["seed"].nunique(), slides["slide_id"].nunique()
    return Line(row, pooled(quantities, slides), *counts, other, marks)


def _estimates(quantities: Sequence[Quantity], spread: bool = True) -> list[Heading]:
    """Each with its interval; what chance gives without one, because it says nothing of slides."""
    headings: list[Heading] = []
    for quantity in quantities:
        if quantity in (CHANCE, NESTED_CHANCE):
            of = UNION if quantity is CHANCE else NESTED
            headings.append(mean(quantity, "by chance", of.name, 0))
        else:
            headings += estimated(quantity, 0, spread)
    return headings


def _other(name: str) -> Heading:
    """The reducer or the rate of a pair's second row."""

    def of(line: Line) -> Cell:
        assert line.other is not None
        value = getattr(line.other.setting, name)
        return words(value) if isinstance(value, str) else Cell(f"{value:g}", value)

    return Column(f"other {name}", number=name == "rate"), of


def _by_rate_and_kappa(line: Line) -> tuple[object, ...]:
    s, kappa = line.row.setting, line.found.get(KAPPA.name)
    value = kappa.metric.value if kappa is not None else None
    return s.encoder, s.schedule, s.one_model, s.trained_at, s.rate, -2.0 if value is None else -value
