"""What printed numbers say about themselves: their test set's size, and whether they can be what they claim.

An accuracy is k/n, so a handful of them, printed to three digits, betray n. An unweighted kappa is at most
the accuracy. A metric outside its range is a slip.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

_FEWEST = 4  # different accuracies below which they say nothing: .5 and .25 fit every multiple of 4
_SURE = 0.05  # sizes that would fit by chance, summed over all up to n, below which n is believed


@dataclass(frozen=True)
class Row:
    """Printed metrics of one system. n: test slides, if stated."""

    where: str
    metrics: Mapping[str, float]
    n: int | None = None


@dataclass(frozen=True)
class Finding:
    """kind "error": a number cannot be right. "note": what the numbers give away."""

    kind: Literal["error", "note"]
    where: str
    message: str


@dataclass(frozen=True)
class Sizes:
    """Sizes n of which all printed accuracies are multiples of 1/n.

    counts  {n: right slides of each accuracy}
    chance  {n: expected number of sizes up to n that would fit as many random numbers}
    """

    counts: Mapping[int, tuple[int, ...]]
    chance: Mapping[int, float]


def fitting_sizes(accuracies: Sequence[float], digits: int, largest: int) -> Sizes:
    """Every n up to `largest` for which each accuracy is a k/n rounded to `digits` decimals."""
    values = np.unique(np.asarray(accuracies, dtype=np.float64))
    sizes = np.arange(1, largest + 1)
    near = np.rint(values[None, :] * sizes[:, None])
    fits = (np.abs(near / sizes[:, None] - values) <= _half_digit(digits)).all(axis=1)
    by_chance = np.cumsum(np.minimum(1.0, sizes / 10**digits) ** len(values))
    wanted = np.asarray(accuracies, dtype=np.float64)
    return Sizes(
        {int(n): tuple(int(k) for k in np.rint(wanted * n)) for n in sizes[fits]},
        {int(n): float(by_chance[n - 1]) for n in sizes[fits]},
    )


def lint(rows: Sequence[Row], digits: int = 3, largest: int = 300) -> list[Finding]:
    """Look at the rows of one table, all measured on one test set and printed to `digits` decimals."""
    found = [finding for row in rows for finding in _lint_row(row, digits)]
    accuracies = [row.metrics["accuracy"] for row in rows if "accuracy" in row.metrics]
    sizes = fitting_sizes(accuracies, digits, largest)
    sure = [n for n, chance in sizes.chance.items() if chance < _SURE]
    if sure and len(set(accuracies)) >= _FEWEST:
        n = sure[0]
        multiples = [other for other in sizes.counts if other != n]
        also = f"; {', '.join(map(str, multiples))} fit too" if multiples else ""
        found.append(
            Finding(
                "note",
                rows[0].where,
                f"all {len(accuracies)} accuracies are k/{n} (k = {', '.join(map(str, sizes.counts[n]))}{also}); "
                f"one slide is {1 / n:.4f}",
            )
        )
    return found


def _lint_row(row: Row, digits: int) -> list[Finding]:
    found = []
    half = _half_digit(digits)
    for name, value in row.metrics.items():
        low, high = _range_of(name)
        if not low <= value <= high:
            found.append(
                Finding("error", row.where, f"{name} is {value:g}, outside its range {low:g} to {high:g}")
            )
    accuracy = row.metrics.get("accuracy")
    if accuracy is None:
        return found
    if row.n and abs(round(accuracy * row.n) / row.n - accuracy) > half:
        found.append(Finding("error", row.where, f"accuracy {accuracy:g} is no multiple of 1/{row.n}"))
    for name, value in row.metrics.items():
        if "kappa" in name and value > accuracy + 2 * half:
            unweighted = name == "kappa_unweighted"
            message = f"{name} {value:g} is above the accuracy {accuracy:g}: it cannot be unweighted"
            found.append(Finding("error" if unweighted else "note", row.where, message))
    return found


def _range_of(name: str) -> tuple[float, float]:
    if "kappa" in name:
        return -1.0, 1.0
    if name.endswith("rank"):
        return 1.0, float("inf")
    if name.startswith(("accuracy", "balanced_accuracy", "weighted_f1", "auroc")) or "recall_at" in name:
        return 0.0, 1.0
    return float("-inf"), float("inf")


def _half_digit(digits: int) -> float:
    return 0.5 * 10**-digits + 1e-9
