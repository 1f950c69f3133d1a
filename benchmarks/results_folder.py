"""What a folder under results/ holds: tables, the leaderboard, every number, the machine."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from slimbench.analysis.board import analyse
from slimbench.leaderboard.board import leaderboard
from slimbench.leaderboard.compare import reader
from slimbench.leaderboard.render import to_markdown
from slimbench.leaderboard.tidy import write_tidy
from slimbench.runs.provenance import provenance
from slimbench.runs.record import Record
from slimbench.runs.store import Store

BAND = "random"


def write(
    out: Path,
    name: str,
    shown: Iterable[tuple[str, str]],
    rates: Iterable[float],
    analysed: Sequence[str],
) -> None:
    """Write results/<name>/ from the records in `out`.

    shown     (task, metric): a table of each for every encoder
    analysed  reducers whose kept sets are analysed
    """
    folder = Path(__file__).parent.parent / "results" / name
    folder.mkdir(exist_ok=True)
    records = [record for record in Store(out).scan().records.values() if record.status == "ok"]
    rates, parts = tuple(rates), []
    for task, metric in shown:
        for encoder in dict.fromkeys(record.cell.encoder for record in records):
            own = [record for record in records if record.cell.encoder == encoder]
            parts.append(f"## {task}: {metric}, `{encoder}`\n\n{table(own, task, metric, rates)}")
    (folder / "tables.md").write_text("\n".join(parts))
    (folder / "analysis.md").write_text(to_markdown(analyse(Store(out), records, analysed).tables))
    (folder / "leaderboard.md").write_text(to_markdown(leaderboard(records, read=reader(out))))
    with (folder / "numbers.csv").open("w") as file:
        write_tidy(records, file)
    predicted(out, records).to_parquet(folder / "predicted.parquet", index=False)
    facts = {
        "cells": len(records),
        "cell_seconds": round(sum(record.seconds for record in records)),
        "commits": sorted({str(record.provenance["commit"]) for record in records}),
        "machine": provenance()["machine"],
    }
    (folder / "machine.json").write_text(json.dumps(facts, indent=1) + "\n")


def predicted(out: Path, records: Iterable[Record]) -> pd.DataFrame:
    """The probe's class of every test slide in every cell: cell (the record's key), slide_id, label, predicted."""
    frames = []
    for record in records:
        outcome = record.tasks.get("linear-probe")
        if outcome is not None and outcome.predictions is not None:
            columns = ["slide_id", "label", "predicted"]
            frame = pd.read_parquet(out / outcome.predictions, columns=columns)
            frames.append(frame.assign(cell=record.key))
    return pd.concat(frames, ignore_index=True).astype("category")


def values(
    records: Iterable[Record], task: str, metric: str
) -> dict[tuple[str, str], dict[float, list[float]]]:
    """{(reducer, schedule): {rate: one value per seed}} of the cells that have the metric."""
    found: dict[tuple[str, str], dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        outcome = record.tasks.get(task)
        for measured in outcome.metrics if outcome else ():
            if measured.name == metric and measured.value is not None:
                found[record.cell.reducer, record.cell.schedule][record.cell.rate].append(measured.value)
    return found


def table(records: Iterable[Record], task: str, metric: str, rates: Iterable[float]) -> str:
    """Markdown: mean over seeds with least and largest, best mean at the last rate first.

    random's row is its band: the least and the largest of its draws. A mean above the band of its schedule and
    rate is marked +, one below it -, one inside it not at all. Rows that no rate changes come first.
    """
    found, rates = values(records, task, metric), tuple(rates)
    fixed = {row: cells[0.0] for row, cells in found.items() if set(cells) == {0.0}}
    moved = {row: cells for row, cells in found.items() if row not in fixed}
    lines = [
        f"| reducer | {' | '.join(f'{rate:g}' for rate in rates)} |",
        f"|---|{'---|' * len(rates)}",
        *(f"| {_named(*row)} | {_spread(seeds)} |{' |' * (len(rates) - 1)}" for row, seeds in fixed.items()),
    ]
    for row, cells in sorted(moved.items(), key=lambda item: -_mean(item[1].get(rates[-1], [-1.0]))):
        band = moved.get((BAND, row[1]), {})
        shown = [
            _spread(cells[rate]) + _mark(row, cells[rate], band.get(rate)) if rate in cells else ""
            for rate in rates
        ]
        lines.append(f"| {_named(*row)} | {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"


def _named(reducer: str, schedule: str) -> str:
    return f"`{reducer}`" if schedule == "geometric" else f"`{reducer}`, {schedule}"


def _spread(seeds: list[float]) -> str:
    return f"{_mean(seeds):.3f} ({min(seeds):.3f} to {max(seeds):.3f}, {len(seeds)})"


def _mark(row: tuple[str, str], seeds: list[float], band: list[float] | None) -> str:
    if row[0] == BAND or band is None:
        return ""
    return " +" if _mean(seeds) > max(band) else " -" if _mean(seeds) < min(band) else ""


def _mean(seeds: list[float]) -> float:
    return sum(seeds) / len(seeds)
