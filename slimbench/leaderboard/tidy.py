"""Every number of a results folder, one a line."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from typing import TextIO

from slimbench.leaderboard.escape import csv_text
from slimbench.runs.record import Record

COLUMNS = (
    "encoder",
    "reducer",
    "rate",
    "seed",
    "cohort",
    "task",
    "metric",
    "value",
    "n",
    "cell",
    "low",
    "high",
)


def write_tidy(records: Iterable[Record], out: TextIO) -> None:
    """CSV with COLUMNS; an undefined value is empty. `cell` is the key of the record that holds the rest."""
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for record in records:
        cell = record.cell
        for task, outcome in record.tasks.items():
            for metric in outcome.metrics:
                named = (
                    cell.encoder,
                    cell.reducer,
                    cell.rate,
                    cell.seed,
                    record.cohort_name,
                    task,
                    metric.name,
                )
                numbers = (metric.value, metric.n, record.key, metric.low, metric.high)
                fields = (*named, *numbers)
                writer.writerow(
                    ["" if f is None else csv_text(f) if isinstance(f, str) else repr(f) for f in fields]
                )
