"""How many tokens enter each block: the budget that every reducer has to meet.

A schedule is written like a plugin: `geometric`, `input`, `once:after=2`, `linear`, each with
`least=8` for the smallest number of tokens a slide may be cut to. Written around a reducer it holds for that
row of a sweep only: `once(tokenlearner:slots=16):after=2`, `input(tome)`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from slimbench.errors import UsageError
from slimbench.spec import Spec, typed_arguments

_ROUND_OFF = 1e-6  # 0.1 ** 0.2 * 1000 is 630.957..., but 0.5 ** 1 * 10 may be 4.999...


@dataclass(frozen=True)
class Schedule(ABC):
    """Counts from the slide's own number of patches, never from a padded length.

    least   a slide is never cut below this many tokens (or below its own number)
    """

    least: int = 1

    @abstractmethod
    def modules(self, depth: int) -> tuple[int, ...]:
        """Blocks (0 = the first) that a reducer stands before, in an encoder of `depth` blocks."""

    @abstractmethod
    def wanted(self, patches: int, depth: int, keep: float) -> list[int]:
        """Tokens after each of `modules(depth)`, not yet bounded by `least`."""

    def counts(self, patches: int, depth: int, rate: float) -> dict[int, int]:
        """Tokens that enter each block a reducer stands before: {block: count}.

        patches  number of patches of the slide
        rate     pruning rate in [0, 1): the share of patches that is gone before the last block

        >>> Geometric().counts(17182, 6, 0.5)
        {1: 14957, 2: 13020, 3: 11334, 4: 9866, 5: 8588}
        >>> Input().counts(1000, 6, 0.9)
        {0: 100}
        """
        if not 0 <= rate < 1:
            raise UsageError(f"a pruning rate lies in [0, 1), got {rate}; 0.8 means that 20 % are kept")
        floor = min(max(self.least, 1), patches)
        kept = self.wanted(patches, depth, 1 - rate)
        return {
            block: max(floor, min(count, patches))
            for block, count in zip(self.modules(depth), kept, strict=True)
        }


@dataclass(frozen=True)
class Geometric(Schedule):
    """SLIM's schedule: every block but the first sees floor(k M) of the M tokens before it,
    k = (1 - rate) ** (1 / (depth - 1)) (paper, section 3). The floors compound.

    exact   floor((1 - rate) ** (l / (depth - 1)) * patches) instead: one floor, no compounding,
            which keeps 9.3 instead of 7.8 % of bags of about 30 tokens at rate 0.9
    """

    exact: bool = False

    def modules(self, depth: int) -> tuple[int, ...]:
        return tuple(range(1, depth)) or (0,)

    def wanted(self, patches: int, depth: int, keep: float) -> list[int]:
        modules = len(self.modules(depth))
        per_block = keep ** (1 / modules)
        counts, current = [], patches
        for number in range(1, modules + 1):
            share = patches * per_block**number if self.exact else per_block * current
            current = max(1, math.floor(share + _ROUND_OFF))
            counts.append(current)
        return counts


@dataclass(frozen=True)
class Linear(Schedule):
    """The same number of tokens leaves before every block but the first (ToMe, Cropr on images)."""

    def modules(self, depth: int) -> tuple[int, ...]:
        return tuple(range(1, depth)) or (0,)

    def wanted(self, patches: int, depth: int, keep: float) -> list[int]:
        modules = len(self.modules(depth))
        gone = (1 - keep) * patches
        return [
            math.floor(patches - gone * number / modules + _ROUND_OFF) for number in range(1, modules + 1)
        ]


@dataclass(frozen=True)
class Once(Schedule):
    """All at once, between block `after` and the next one (1 = after the first block)."""

    after: int = 1

    def modules(self, depth: int) -> tuple[int, ...]:
        if not 0 <= self.after < max(depth, 1):
            raise UsageError(f"schedule once:after={self.after}: the encoder has {depth} blocks")
        return (self.after,)

    def wanted(self, patches: int, depth: int, keep: float) -> list[int]:
        return [math.floor(keep * patches + _ROUND_OFF)]


@dataclass(frozen=True)
class Input(Schedule):
    """All at once before the first block: on slides whose first block already reads everything,
    the only schedule that can tell reducers apart."""

    def modules(self, depth: int) -> tuple[int, ...]:
        return (0,)

    def wanted(self, patches: int, depth: int, keep: float) -> list[int]:
        return [math.floor(keep * patches + _ROUND_OFF)]


SCHEDULES: dict[str, type[Schedule]] = {
    "geometric": Geometric,
    "input": Input,
    "once": Once,
    "linear": Linear,
}


def schedule(text: str) -> Schedule:
    """The schedule that `text` names: `geometric`, `input:least=8`, `once:after=2`."""
    spec = Spec.parse(text)
    if spec.name not in SCHEDULES:
        raise UsageError(f"no schedule is called {spec.name!r}; known: {', '.join(SCHEDULES)}")
    kind = SCHEDULES[spec.name]
    return kind(**typed_arguments(kind, spec))


def own_schedule(reducer: str, default: str) -> tuple[str, str]:
    """(reducer, schedule): the schedule written around `reducer`, or else the default.

    >>> own_schedule("once(cropr:order=score):after=2", "geometric")
    ('cropr:order=score', 'once:after=2')
    >>> own_schedule("reverse(cropr)", "geometric")
    ('reverse(cropr)', 'geometric')
    """
    spec = Spec.parse(reducer)
    if spec.of is None or spec.name not in SCHEDULES:
        return reducer, default
    return str(spec.of), str(Spec(spec.name, spec.args))
