"""McNemar's exact test, Holm's adjustment, and the smallest difference that a test set can show."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from scipy.optimize import brentq
from scipy.stats import binom


def mcnemar(wins: int, losses: int) -> float:
    """Exact two-sided p that so uneven a split of discordant slides arises by tossing a coin for each."""
    return min(1.0, 2 * float(binom.cdf(min(wins, losses), wins + losses, 0.5)))


def holm(p: Sequence[float]) -> list[float]:
    """P-values of one family of comparisons, adjusted step-down (Holm 1979), in the order given."""
    values = np.asarray(p, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    factors = np.arange(len(values), 0, -1)
    adjusted = np.empty(len(values))
    adjusted[order] = np.minimum(1, np.maximum.accumulate(factors * values[order]))
    return [float(value) for value in adjusted]


@lru_cache(maxsize=4096)
def smallest_detectable(n: int, discordance: float, power: float = 0.8) -> float | None:
    """Smallest true difference of accuracy that McNemar's exact test (p < .05) finds with `power`.

    n slides of which a share `discordance` is expected to differ between the systems. Never below 6/n: six
    slides that all point one way are the least that give p < .05. None where no difference is found.
    """
    sizes = np.arange(n + 1)
    chance = binom.pmf(sizes, n, discordance)
    sizes, chance = sizes[chance > 1e-12], chance[chance > 1e-12]
    critical = binom.ppf(0.025, sizes, 0.5)
    critical -= 2 * binom.cdf(critical, sizes, 0.5) > 0.05  # ppf is the first count that is not extreme

    def lacking(difference: float) -> float:
        win = (1 + difference / discordance) / 2
        found = binom.cdf(critical, sizes, win) + binom.sf(sizes - critical - 1, sizes, win)
        return power - float(chance @ found)

    if discordance <= 0 or lacking(discordance) > 0:
        return None
    return max(float(brentq(lacking, 0, discordance, xtol=1e-5)), 6 / n)
