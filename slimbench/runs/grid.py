"""From what a user asked for to the cells of a sweep.

Everything is checked here, before anything is trained: names and numbers at once, the arguments of
plugins (`check_plugins`) in a process that may import them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Literal, get_args

from slimbench import registry
from slimbench.errors import UsageError
from slimbench.registry import Registry
from slimbench.runs.record import Cell
from slimbench.schedule import own_schedule, schedule
from slimbench.spec import Spec, typed_arguments
from slimbench.training.recipe import recipe

if TYPE_CHECKING:
    from slimbench.cohorts.cohort import Defaults

Precision = Literal["fp32", "bf16"]
NO_REDUCER, NO_ENCODER = "none", "mean-pool"  # the rows that all others are read against
STEP = Decimal("0.1")

# What slimbench itself passes to a plugin, so that a user cannot.
GIVEN = {"reducer": {"dim"}, "encoder": {"input_dim"}, "text tower": {"training_reports"}, "task": set[str]()}


@dataclass(frozen=True)
class Grid:
    """What a sweep was asked for; () or None stands for the cohort's own default.

    trained_at  one model per reducer, trained at this rate and evaluated at all `rates`; None: one per rate
    baselines   whether to add the reducer `none` at rate 0 and the encoder `mean-pool`

    An encoder that reads no patches has one row, without a reducer.
    """

    reducers: tuple[str, ...]
    rates: tuple[float, ...]
    encoders: tuple[str, ...]
    cohort: str
    tasks: tuple[str, ...]
    seeds: tuple[int, ...]
    schedules: tuple[str, ...]
    text: str | None
    recipe: str | None
    precision: Precision
    trained_at: float | None
    baselines: bool

    def cells(self, defaults: Defaults) -> tuple[Cell, ...]:
        """The cells, seed by seed so that a first whole table stands early; none of them twice."""
        made = dict.fromkeys(cell for seed in self.seeds for cell in self._of_seed(seed, defaults))
        return tuple(made)

    def plugins(self, defaults: Defaults) -> tuple[tuple[str, str], ...]:
        """(kind, spec) of every plugin that the cells name."""
        cells = self.cells(defaults)
        named = [pair for c in cells for pair in (("encoder", c.encoder), ("reducer", c.reducer))]
        named += [("text tower", cell.text) for cell in cells]
        named += [("task", task) for cell in cells for task in cell.tasks]
        return tuple(dict.fromkeys(named))

    def rows(self, defaults: Defaults) -> tuple[tuple[str, str, str], ...]:
        """(encoder, reducer, schedule) of every model that the cells name."""
        return tuple(dict.fromkeys((c.encoder, c.reducer, c.schedule) for c in self.cells(defaults)))

    def _of_seed(self, seed: int, defaults: Defaults) -> Iterator[Cell]:
        def cell(encoder: str, reducer: str, rate: float, trained_at: float, schedule: str) -> Cell:
            return Cell(
                encoder=encoder,
                reducer=reducer,
                rate=rate,
                trained_at=trained_at,
                seed=seed,
                cohort=self.cohort,
                text=self.text or defaults.text,
                recipe=self.recipe or defaults.recipe,
                schedule=schedule,
                precision=self.precision,
                tasks=self.tasks or defaults.tasks,
            )

        encoders = self.encoders or (defaults.encoder,)
        if self.baselines:
            yield cell(NO_ENCODER, NO_REDUCER, 0.0, 0.0, "geometric")
        for encoder in encoders:
            if not registry.encoders.reads_patches(encoder):
                yield cell(encoder, NO_REDUCER, 0.0, 0.0, "geometric")
                continue
            for reducer in (*((NO_REDUCER,) if self.baselines else ()), *self.reducers):
                if Spec.parse(reducer).name == NO_REDUCER:  # keeps everything, so it has one rate
                    yield cell(encoder, reducer, 0.0, 0.0, "geometric")
                    continue
                for name in self.schedules:
                    inner, own = own_schedule(reducer, name)
                    if registry.reducers.keeps_own_number(inner):
                        yield cell(encoder, inner, 0.0, 0.0, own)
                        continue
                    for rate in self.rates:
                        trained_at = rate if self.trained_at is None else self.trained_at
                        yield cell(encoder, inner, rate, trained_at, own)


def grid(
    reducers: str | Sequence[str] = ("cropr",),
    rates: str | float | Sequence[float] = "0.5-0.9",
    *,
    encoders: str | Sequence[str] = (),
    cohort: str = "digits",
    tasks: str | Sequence[str] = (),
    seeds: str | int | Sequence[int] = "0",
    schedules: str | Sequence[str] = ("geometric",),
    text: str | None = None,
    recipe: str | None = None,
    precision: str = "fp32",
    trained_at: float | None = None,
    baselines: bool = True,
) -> Grid:
    """Read and check a request; UsageError with the nearest name for whatever is unknown.

    rates   "0.5-0.9" (steps of 0.1), "0.5-0.9:0.2" (steps of 0.2), "0.5,0.8", a number or several
    seeds   "0-2", "0,3", a number or several
    """
    if precision not in get_args(Precision):
        raise UsageError(f"no precision is called {precision!r}; known: {', '.join(get_args(Precision))}")
    return Grid(
        reducers=_specs(reducers, _known_reducer),
        rates=parse_rates(rates),
        encoders=_specs(encoders, _known(registry.encoders)),
        cohort=cohort,
        tasks=_specs(tasks, _known(registry.tasks)),
        seeds=parse_seeds(seeds),
        schedules=_specs(schedules, schedule),
        text=next(iter(_specs(text or (), _known(registry.text_towers))), None),
        recipe=next(iter(_specs(recipe or (), _recipe)), None),
        precision=precision,  # type: ignore[arg-type]  # checked above
        trained_at=None if trained_at is None else parse_rates(trained_at)[0],
        baselines=baselines,
    )


def parse_rates(rates: str | float | Sequence[float]) -> tuple[float, ...]:
    """Pruning rates in [0, 1), in the order given, none twice.

    >>> parse_rates("0.5-0.9")
    (0.5, 0.6, 0.7, 0.8, 0.9)
    >>> parse_rates("0.5-0.9:0.2,0.95")
    (0.5, 0.7, 0.9, 0.95)
    """
    found: list[Decimal] = []
    for part in _parts(rates):
        match = re.fullmatch(r"([\d.]+)(?:-([\d.]+)(?::([\d.]+))?)?", part)
        if match is None:
            raise UsageError(f"rates {rates!r}: {part!r} is neither a rate nor a range such as 0.5-0.9")
        try:
            first, last, step = (Decimal(text) if text else None for text in match.groups())
        except InvalidOperation:
            raise UsageError(f"rates {rates!r}: {part!r} is no number") from None
        assert first is not None
        if last is None:
            found.append(first)
            continue
        step = STEP if step is None else step
        if last < first or not step:
            raise UsageError(f"rates {rates!r}: {part!r} holds no rate; write it upwards, as in 0.5-0.9:0.1")
        found += [first + step * number for number in range(int((last - first) / step) + 1)]
    for rate in found:
        if not 0 <= rate < 1:
            raise UsageError(f"a pruning rate lies in [0, 1), got {rate}; 0.8 means that 20 % are kept")
    return tuple(dict.fromkeys(map(float, found)))


def parse_seeds(seeds: str | int | Sequence[int]) -> tuple[int, ...]:
    """Seeds, in the order given, none twice.

    >>> parse_seeds("0-2,7")
    (0, 1, 2, 7)
    """
    found: list[int] = []
    for part in _parts(seeds):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise UsageError(f"seeds {seeds!r}: {part!r} is neither a whole number nor a range such as 0-2")
        found += range(int(match[1]), int(match[2] or match[1]) + 1)
    return tuple(dict.fromkeys(found))


def check_plugins(named: Iterable[Sequence[str]], report: Callable[[str], None] = lambda spec: None) -> None:
    """Import every (kind, spec) and check its arguments against its signature.

    report  called with each spec before it is imported

    Raises PluginError for one that cannot be imported, UsageError for an argument that it does not take.
    """
    registries = (registry.reducers, registry.encoders, registry.tasks, registry.text_towers)
    by_kind = {found.kind: found for found in registries}
    for kind, text in named:
        report(text)
        spec: Spec | None = Spec.parse(text)
        while spec is not None:
            typed_arguments(by_kind[kind].find(spec.name).load(), spec, reserved=GIVEN[kind] | {"of"})
            spec = spec.of


def _parts(value: str | float | Sequence[float]) -> list[str]:
    values = [value] if isinstance(value, str | int | float) else list(value)
    texts = [item if isinstance(item, str) else f"{Decimal(repr(item)):f}" for item in values]
    parts = [part.strip() for text in texts for part in text.split(",") if part.strip()]
    if not parts:
        raise UsageError(f"{value!r} names no number; write 0.5-0.9 or 0.5,0.8")
    return parts


def _specs(texts: str | Sequence[str], check: Callable[[str], object]) -> tuple[str, ...]:
    """Specs in one spelling (arguments sorted), each known to `check`, none twice."""
    found = []
    for text in (texts,) if isinstance(texts, str) else texts:
        spec = str(Spec.parse(text))
        check(spec)
        found.append(spec)
    return tuple(dict.fromkeys(found))


def _known(plugins: Registry) -> Callable[[str], object]:
    def find(text: str) -> object:
        spec = Spec.parse(text)
        if spec.of is not None:
            find(str(spec.of))
        return plugins.find(spec.name)

    return find


def _known_reducer(text: str) -> object:
    inner, own = own_schedule(text, "geometric")
    return schedule(own), _known(registry.reducers)(inner)


def _recipe(text: str) -> object:
    return recipe(text)
