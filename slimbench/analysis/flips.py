"""Whose class changes: predictions of the probe on a reduced slide against those on the whole one.

    flips    share of slides whose predicted class differs from that of the same encoder without a reducer, same seed
    lost     of all slides, those that the whole slide gets right and the reduced one wrong
    gained   the other way round

Two trainings of the encoder without a reducer flip predictions too: that row, its seeds against each other, is
what the others are read against. (`flips` is the churn of Milani Fard et al., NeurIPS 2016.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

import pandas as pd

from slimbench.analysis.quantities import Quantity
from slimbench.leaderboard.compare import Reader
from slimbench.leaderboard.rows import Row, unpruned
from slimbench.runs.record import Record

FLIPS = (Quantity("flips"), Quantity("lost"), Quantity("gained"))


def flips(row: Row, others: Sequence[Row], task: str, read: Reader) -> pd.DataFrame | None:
    """Per slide and seed the values of FLIPS, 0 or 1, with columns slide_id, patient and seed as `pooled` takes
    them; None where there is nothing to compare with."""
    frames = [
        frame for seed, one, whole in _cells(row, others) for frame in _flipped(seed, one, whole, task, read)
    ]
    return pd.concat(frames, ignore_index=True) if frames else None


def _cells(row: Row, others: Sequence[Row]) -> Iterator[tuple[str, Record, Record]]:
    """(seed, record of the row, record of the whole slide)."""
    if row.setting.is_unpruned:
        for one, other in combinations(row.ok, 2):
            yield f"{one.cell.seed}, {other.cell.seed}", one, other
        return
    whole = unpruned(row, others)
    by_seed = {record.cell.seed: record for record in whole.ok} if whole is not None else {}
    for record in row.ok:
        if record.cell.seed in by_seed:
            yield str(record.cell.seed), record, by_seed[record.cell.seed]


def _flipped(seed: str, one: Record, whole: Record, task: str, read: Reader) -> Iterator[pd.DataFrame]:
    tables = []
    for record in (one, whole):
        outcome = record.tasks.get(task)
        if outcome is None or outcome.predictions is None:
            return
        try:
            tables.append(read(outcome.predictions))
        except OSError:  # somebody cleared up
            return
    keys = ["slide_id", "patient", "label", *(["draw"] if "draw" in tables[0] else [])]
    one_table, whole_table = (table[[*keys, "predicted"]] for table in tables)
    both = one_table.merge(whole_table, on=keys, suffixes=("", "_whole"), validate="one_to_one")
    right, was_right = (both[name] == both["label"] for name in ("predicted", "predicted_whole"))
    yield pd.DataFrame(
        {
            "slide_id": both["slide_id"],
            "patient": both["patient"],
            "seed": seed,
            "flips": (both["predicted"] != both["predicted_whole"]).astype(float),
            "lost": (was_right & ~right).astype(float),
            "gained": (right & ~was_right).astype(float),
        }
    )
