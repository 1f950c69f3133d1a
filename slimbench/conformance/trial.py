"""One reducer on trial: how it is built, what it is run on, and how a failure is told."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from slimbench.conformance.cases import made_context, made_slide
from slimbench.errors import ReducerError
from slimbench.reducer import Context, Reducer, ReducerFactory, Reduction
from slimbench.tokens import Tokens

SIZES = (3, 4, 7, 16, 65)


class Broken(Exception):
    """A promise is broken; the message is the input and what happened."""


class Untried(Exception):
    """A promise cannot be judged, because the reducer breaks another one first."""


@dataclass(frozen=True)
class Trial:
    """A reducer to try, and the width of the tokens."""

    factory: ReducerFactory
    dim: int

    @cached_property
    def _first(self) -> Reducer:
        torch.manual_seed(1)
        return self.factory(self.dim)

    def build(self, training: bool = False) -> Reducer:
        """A fresh one each time, with the same weights."""
        return copy.deepcopy(self._first).train(training)

    def slide(self, n: int, seed: int = 0, *, merged: bool = False) -> Tokens:
        return made_slide(n, self.dim, seed, merged=merged)

    def cases(self) -> Iterator[tuple[Tokens, int]]:
        """(tokens, keep < N), smallest first; every other slide looks as if something was merged before."""
        for n in SIZES:
            for keep in sorted({1, 2, n // 2, n - 1}):
                yield self.slide(n, merged=n % 2 == 0), keep

    def run(
        self,
        promise: str,
        tokens: Tokens,
        keep: int,
        *,
        reducer: Reducer | None = None,
        context: Context | None = None,
        training: bool = False,
    ) -> Reduction:
        """One sealed call."""
        reducer = reducer or self.build(training)
        context = context or made_context(tokens, training=training)
        with blamed(promise, tokens, keep):
            reduced: Reduction = reducer(tokens, keep, context)
        return reduced


@contextmanager
def blamed(promise: str, tokens: Tokens, keep: int) -> Iterator[None]:
    """What goes wrong inside breaks `promise`, unless the sealed call names another one."""
    try:
        yield
    except ReducerError as error:
        if error.promise in ("", promise):
            raise Broken(f"{case(tokens, keep)}: {error}") from error
        raise Untried(f"{case(tokens, keep)} breaks `{error.promise}`") from error
    except Exception as error:
        raise Broken(f"{case(tokens, keep)}: raises {type(error).__name__}: {error}") from error


def case(tokens: Tokens, keep: int) -> str:
    return f"N={len(tokens)} keep={keep}"


def require(holds: bool, tokens: Tokens, keep: int, otherwise: str) -> None:
    """Broken, with the input, unless `holds`."""
    if not holds:
        raise Broken(f"{case(tokens, keep)}: {otherwise}")


def equal(one: Tensor | None, two: Tensor | None) -> bool:
    """Both missing, or equal bit by bit."""
    return one is two or (one is not None and two is not None and torch.equal(one, two))
