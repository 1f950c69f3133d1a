"""Runs every promise against one reducer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from slimbench.conformance.promises import PROMISES
from slimbench.conformance.trial import Broken, Trial, Untried
from slimbench.reducer import Reducer, ReducerFactory
from slimbench.registry import reducers


@dataclass(frozen=True)
class Promise:
    """One promise and whether it was kept.

    name    a key of PROMISES
    kept    None when it could not be tried, because another is broken
    detail  what was seen; of a broken promise the smallest input that breaks it
    """

    name: str
    kept: bool | None
    detail: str

    def __str__(self) -> str:
        verdict = {True: "kept", False: "BROKEN", None: "untried"}[self.kept]
        return f"{verdict:<8}{self.name:<18}{self.detail}"


def check_reducer(reducer: str | ReducerFactory, dim: int = 24) -> list[Promise]:
    """Every promise of PROMISES, in that order.

    reducer  a spec (`tome-local:window=64`, `mine.py:Mine`), a class, or any function from D to a Reducer
    dim      width of the tokens it is tried on, a multiple of 3
    """
    trial = Trial(_factory(reducer), dim)
    return [_judged(name, trial) for name in PROMISES]


def _factory(reducer: str | ReducerFactory) -> ReducerFactory:
    if not isinstance(reducer, str):
        return reducer
    spec = reducer

    def build(dim: int) -> Reducer:
        built: Reducer = reducers.build(spec, dim=dim)
        return built

    return build


def _judged(name: str, trial: Trial) -> Promise:
    try:
        return Promise(name, True, PROMISES[name](trial))
    except Broken as broken:
        return Promise(name, False, str(broken))
    except Untried as untried:
        return Promise(name, None, str(untried))


class ReducerConformance:
    """Tests of one reducer; inherit, and name it:

    class TestMine(ReducerConformance):
        reducer = Mine                                          # a class
        reducer = "tome-local:window=64"                        # or a spec
        reducer = staticmethod(lambda dim: Mine(dim, alpha=2))  # or a function
    """

    reducer: str | ReducerFactory
    dim: int = 24

    def keeps(self, name: str) -> None:
        """AssertionError with the smallest input if the promise is broken or could not be tried."""
        promise = _judged(name, Trial(_factory(self.reducer), self.dim))
        assert promise.kept, str(promise)


def _test_of(name: str) -> Callable[[ReducerConformance], None]:
    def test(self: ReducerConformance) -> None:
        self.keeps(name)

    test.__doc__ = PROMISES[name].__doc__
    return test


for _name in PROMISES:
    setattr(ReducerConformance, f"test_{_name.replace(' ', '_').replace('-', '_')}", _test_of(_name))
