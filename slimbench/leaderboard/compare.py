"""Which rows differ, from the predictions of every seed on the same slides.

Two rows are compared seed by seed: what is reported is the mean of the seeds' differences. Its interval
holds both reasons why another study might see another number, other slides and other training runs:

    half width ^ 2 = (mean half width of the seeds' paired intervals over slides) ^ 2
                   + (t(.975, S - 1) SD of the S differences / sqrt(S)) ^ 2

The first term does not shrink with S, because all seeds are measured on the same slides. One seed has no
second term, so it gives no verdict.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property

import numpy as np
import pandas as pd
from scipy.stats import norm, t

from slimbench.errors import UsageError
from slimbench.leaderboard.rows import Row, tasks_of
from slimbench.runs.record import Record
from slimbench.statistics.metrics import NAMES
from slimbench.statistics.paired import align, compare
from slimbench.statistics.ranks import rank_intervals
from slimbench.statistics.significance import holm, smallest_detectable

ALPHA = 0.05
Reader = Callable[[str], pd.DataFrame]  # a record's path of predictions -> the table; OSError if it is gone


def probed(rows: Sequence[Row]) -> list[str]:
    """Tasks that left a predicted class for each slide, in the order of the cells.

    Those whose metrics are means over drawn training sets (few-shot) have no class per slide and take no part:
    their primary metric is none of slimbench.statistics.metrics.
    """
    found = []
    for task, primary in tasks_of(rows).items():
        outcomes = [record.tasks[task] for row in rows for record in row.ok if task in record.tasks]
        left = any("classes" in outcome.facts and outcome.predictions for outcome in outcomes)
        if primary in NAMES and left:
            found.append(task)
    return found


@dataclass(frozen=True)
class Difference:
    """A row minus its reference, mean over the seeds that both have.

    p            two-sided, Holm-adjusted over the table; None for one seed: no verdict
    discordance  share of slides that one gets right and the other wrong, mean over seeds
    """

    mean: float
    low: float
    high: float
    p: float | None
    seeds: int
    n: int
    discordance: float

    @property
    def verdict(self) -> str:
        """In words that a table can print."""
        if self.p is None:
            return "1 seed: no verdict"
        if self.p >= ALPHA:
            return "not told apart"
        return "better" if self.mean > 0 else "worse"


@dataclass(frozen=True)
class Comparison:
    """A classification task of the rows of one table.

    read  reads predictions; a row without any takes no part
    """

    rows: tuple[Row, ...]
    task: str
    metric: str
    read: Reader

    def against(self, references: Mapping[int, Row | None]) -> dict[int, Difference]:
        """{place of a row: difference to its reference}, p adjusted over all of them."""
        found: dict[int, Difference] = {}
        for place, reference in references.items():
            if reference is not None and reference is not self.rows[place]:
                difference = self._difference(self.rows[place], reference)
                if difference is not None:
                    found[place] = difference
        judged = [place for place, difference in found.items() if difference.p is not None]
        adjusted = holm([found[place].p or 0.0 for place in judged])
        return found | {place: replace(found[place], p=p) for place, p in zip(judged, adjusted, strict=True)}

    @cached_property
    def within_noise(self) -> dict[int, bool]:
        """{place: whether it cannot be told from the best row}; empty where no verdict can be given."""
        means = {
            place: v.mean for place, row in enumerate(self.rows) if (v := row.value(self.task, self.metric))
        }
        defined = {
            place: mean for place, mean in means.items() if mean is not None and self.rows[place].seeds > 1
        }
        if len(defined) < 2:
            return {}
        best = max(defined, key=lambda place: defined[place])
        others = self.against({place: self.rows[best] for place in defined if place != best})
        return {best: True} | {place: d.verdict == "not told apart" for place, d in others.items()}

    @cached_property
    def ranks(self) -> dict[int, tuple[float, float]]:
        """{place: 2.5 and 97.5 % of its rank, seeds averaged, over patient resamples}; 1 is the best."""
        tables = {place: list(self._tables(row).values()) for place, row in enumerate(self.rows)}
        tables = {place: found for place, found in tables.items() if found}
        if len(tables) < 2:
            return {}
        try:
            together = align([table for found in tables.values() for table in found], self._classes)
        except UsageError:
            return {}
        draws, first = [], 0
        for found in tables.values():
            own = [together.drawn(self.metric, first + number) for number in range(len(found))]
            draws.append(np.mean(own, axis=0))
            first += len(found)
        low, high = rank_intervals(np.stack(draws))
        return {place: (float(a), float(b)) for place, a, b in zip(tables, low, high, strict=True)}

    def _difference(self, row: Row, reference: Row) -> Difference | None:
        ours, theirs = self._tables(row), self._tables(reference)
        try:
            pairs = [
                compare(ours[seed], theirs[seed], self._classes, self.metric)
                for seed in ours
                if seed in theirs
            ]
        except UsageError:  # the data changed between the two
            return None
        whole = [(p.difference, p.low, p.high) for p in pairs]
        defined = [
            (d, (h - lo) / 2) for d, lo, h in whole if d is not None and lo is not None and h is not None
        ]
        if not defined:
            return None
        seeds = len(defined)
        mean = statistics.fmean(d for d, _ in defined)
        half = statistics.fmean(half for _, half in defined)
        p = None
        if seeds > 1:
            spread = statistics.stdev(d for d, _ in defined)
            half = float(np.hypot(half, t.ppf(0.975, seeds - 1) * spread / seeds**0.5))
            p = 2 * float(norm.sf(norm.ppf(0.975) * abs(mean) / half)) if half else float(mean == 0)
        discordance = statistics.fmean(pair.discordant / pair.n for pair in pairs)
        return Difference(mean, mean - half, mean + half, p, seeds, pairs[0].n, discordance)

    @property
    def _classes(self) -> list[str]:
        for row in self.rows:
            for record in row.ok:
                if self.task in record.tasks and "classes" in record.tasks[self.task].facts:
                    return list(record.tasks[self.task].facts["classes"])
        return []

    def _tables(self, row: Row) -> dict[int, pd.DataFrame]:
        """{seed: predictions} of the seeds that have any, of the table's classes."""
        found = {}
        for record in row.ok:
            path = self._path(record)
            if path is not None:
                try:
                    found[record.cell.seed] = self.read(path)
                except OSError:
                    continue
        return found

    def _path(self, record: Record) -> str | None:
        outcome = record.tasks.get(self.task)
        if outcome is None or outcome.facts.get("classes") != self._classes:
            return None
        return outcome.predictions


def detectable(differences: Sequence[Difference]) -> tuple[int, float | None]:
    """(n, smallest difference of accuracy that n slides show with 80 % power at the median discordance)."""
    n = differences[0].n
    return n, smallest_detectable(n, statistics.median(d.discordance for d in differences))


def reader(out: object) -> Reader:
    """Reads predictions below the results folder `out`, each once."""

    @cache
    def read(path: str) -> pd.DataFrame:
        return pd.read_parquet(f"{out}/{path}")

    return read
