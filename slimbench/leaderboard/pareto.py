"""What quality costs: the points of a Pareto plot, placed, ready to be drawn as SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from slimbench.leaderboard.board import EFFICIENCY, PROBED
from slimbench.leaderboard.columns import FLOPS
from slimbench.leaderboard.rows import MEAN_POOL, Row, tasks_of
from slimbench.leaderboard.table import number

WIDTH, HEIGHT = 560.0, 340.0
LEFT, RIGHT, TOP, BOTTOM = 58.0, 14.0, 14.0, 46.0
COSTS = {FLOPS: "FLOPs per slide", "latency_median_ms": "milliseconds per slide"}


@dataclass(frozen=True)
class Point:
    """A row in the plot, in pixels.

    low, high  ends of its interval
    mark       what stands beside it: its rate
    color      place of its reducer in Plot.key
    front      whether no other row is as good at the same cost or less
    """

    x: float
    y: float
    low: float | None
    high: float | None
    label: str
    detail: str
    mark: str
    color: int
    front: bool


@dataclass(frozen=True)
class Plot:
    """Quality against one cost. ticks: (pixel, text); front: the line through the best, as SVG; key: colors."""

    title: str
    x_label: str
    y_label: str
    points: tuple[Point, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    front: str
    key: tuple[str, ...]


def plots(rows: Sequence[Row]) -> tuple[Plot, ...]:
    """For each cohort the first probed task against FLOPs and against latency, as far as they were measured."""
    made = []
    for cohort in dict.fromkeys(row.setting.cohort for row in rows):
        of_cohort = [row for row in rows if row.setting.cohort == cohort]
        probed = [task for task in tasks_of(of_cohort) if any(row.value(task, PROBED) for row in of_cohort)]
        costly = [task for task in tasks_of(of_cohort) if task.split(":")[0] == EFFICIENCY]
        for cost, label in COSTS.items():
            if probed and costly:
                plot = _plot(f"{cohort}: {probed[0]}", of_cohort, probed[0], costly[0], cost, label)
                made += [plot] if plot is not None else []
    return tuple(made)


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers that cover [low, high].

    >>> ticks(0.81, 0.97)
    [0.8, 0.85, 0.9, 0.95, 1.0]
    """
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / about))
    step = next(power * factor for factor in (1, 2, 5, 10) if span / (power * factor) <= about)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(place * step, 12) for place in range(first, max(last, first + 1) + 1)]


def _plot(title: str, rows: Sequence[Row], task: str, costly: str, cost: str, label: str) -> Plot | None:
    found = []
    for row in rows:
        quality, price = row.value(task, PROBED), row.value(costly, cost)
        if quality is not None and price is not None and quality.mean is not None and price.mean is not None:
            found.append((row, price.mean, quality.mean, quality))
    if len(found) < 2:
        return None
    key = list(dict.fromkeys(_key(row) for row, *_ in found))
    ends = [end for _, _, y, q in found for end in (y, q.low, q.high) if end is not None]
    x_ticks = ticks(0.0, max(x for _, x, _, _ in found))
    y_ticks = ticks(min(ends), max(ends))

    def across(x: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0]), 1)

    def up(y: float) -> float:
        return round(
            HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]), 1
        )

    points = tuple(
        Point(
            across(x),
            up(y),
            None if q.low is None else up(q.low),
            None if q.high is None else up(q.high),
            _name(row),
            f"{number(y).text} at {number(x, 1).text}, {q.seeds} seed{'s' * (q.seeds > 1)}",
            f"{row.setting.rate:g}" if row.setting.rate else "",
            key.index(_key(row)),
            not any(ox <= x and oy >= y and (ox, oy) != (x, y) for _, ox, oy, _ in found),
        )
        for row, x, y, q in found
    )
    best = sorted((p for p in points if p.front), key=lambda p: (p.x, -p.y))
    return Plot(
        title,
        label,
        PROBED.replace("_", " "),
        points,
        tuple((across(x), number(x, 1).text if x else "0") for x in x_ticks),
        tuple((up(y), f"{y:g}") for y in y_ticks),
        " ".join(f"{p.x},{p.y}" for p in best),
        tuple(key),
    )


def _key(row: Row) -> str:
    s = row.setting
    return (
        row.encoder if s.is_baseline else f"{s.encoder} {s.reducer}" if s.encoder == MEAN_POOL else s.reducer
    )


def _name(row: Row) -> str:
    s = row.setting
    trained = f", trained at {s.trained_at:g}" if s.one_model else ""
    schedule = "" if s.schedule == "geometric" else f" {s.schedule}"
    return f"{row.encoder} {s.reducer} {s.rate:g}{schedule}{trained}"
