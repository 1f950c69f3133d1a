"""The suite keeps its own promise: every shipped reducer passes, and each way to be broken has its name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from slimbench.conformance import PROMISES, Promise, ReducerConformance, check_reducer
from slimbench.reducer import Context, Merger, Pruner, Reducer, Reduction
from slimbench.reducers import BUILT_INS
from slimbench.reducers.random import RandomPruning
from slimbench.reducers.tome import ToMe
from slimbench.tokens import Tokens

WRAPPERS = {"reverse"}
SPECS = [
    *sorted(set(BUILT_INS) - WRAPPERS),
    "reverse(cropr)",
    "reverse(random)",
    "cropr:detach=false,order=score",
]
SPECS += ["attn-topk:query=mean", "tome-local:window=16", "pitome:window=16", "dpc-knn:window=16"]


@pytest.mark.parametrize("spec", SPECS)
def test_a_shipped_reducer_keeps_every_promise(spec: str) -> None:
    assert [str(promise) for promise in check_reducer(spec) if not promise.kept] == []


class WrongCount(Reducer):
    def reduce(self, tokens: Tokens, keep: int, context: Context) -> Reduction:
        return Reduction.keeping(tokens, torch.arange(min(keep + 1, len(tokens))))


class FixedThatIsNot(Reducer):
    count = "fixed"
    ordered = True

    def reduce(self, tokens: Tokens, keep: int, context: Context) -> Reduction:
        return Reduction.keeping(tokens, torch.arange(min(keep, len(tokens))))


class NaN(Pruner):
    def score(self, tokens: Tokens, context: Context) -> Tensor:
        return tokens.x[:, 0] / tokens.x.norm(dim=1)  # 0 / 0 on a blank patch


class NaNTokens(Reducer):
    ordered = True

    def reduce(self, tokens: Tokens, keep: int, context: Context) -> Reduction:
        reduction = Reduction.keeping(tokens, torch.arange(keep))
        return replace(reduction, tokens=reduction.tokens.replace_x(reduction.tokens.x.log()))


class LostPatches(Reducer):
    """Averages the rest into the last token, and does not count it."""

    ordered = True

    def reduce(self, tokens: Tokens, keep: int, context: Context) -> Reduction:
        assign = torch.arange(len(tokens)).clamp(max=keep - 1)
        merged = tokens.merge(assign, keep)
        return Reduction(replace(merged, size=tokens.size[:keep]), assign)


class NoAssign(Reducer):
    def reduce(self, tokens: Tokens, keep: int, context: Context) -> Reduction:
        return Reduction(tokens.take(torch.arange(keep)))


class ForeignOrigin(Reducer):
    ordered = True

    def reduce(self, tokens: Tokens, keep: int, context: Context) -> Reduction:
        reduction = Reduction.keeping(tokens, torch.arange(keep))
        moved = replace(reduction.tokens, origin=tokens.origin[-keep:])
        return replace(reduction, tokens=moved)


class OtherDtype(Reducer):
    ordered = True

    def reduce(self, tokens: Tokens, keep: int, context: Context) -> Reduction:
        reduction = Reduction.keeping(tokens, torch.arange(keep))
        return replace(reduction, tokens=reduction.tokens.replace_x(reduction.tokens.x.float() * 1.0))


class RanksInHalf(Pruner):
    def score(self, tokens: Tokens, context: Context) -> Tensor:
        return tokens.x.sum(dim=1)  # accumulated and rounded in the tokens' own precision


class LeakyGradient(Pruner):
    """Remembers the tokens it scored, attached, and lets the summary reach the encoder through them."""

    supervised = True

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.query = torch.nn.Parameter(torch.ones(dim))

    def score(self, tokens: Tokens, context: Context) -> Tensor:
        self.seen = tokens.x
        return tokens.x.float() @ self.query

    def supervise(self, tokens: Tokens, context: Context) -> Tensor:
        seen = self.seen if len(self.seen) == len(tokens) else tokens.x
        return seen.float().mean(0) * self.query


class PromisedSummary(Pruner):
    supervised = True

    def score(self, tokens: Tokens, context: Context) -> Tensor:
        return tokens.x.float().norm(dim=1)

    def supervise(self, tokens: Tokens, context: Context) -> Tensor | None:
        return None


class NeverTaught(Pruner):
    """A learned score that nothing teaches, because a ranking has no gradient."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.query = torch.nn.Parameter(torch.ones(dim))

    def score(self, tokens: Tokens, context: Context) -> Tensor:
        return tokens.x.float() @ self.query


class Detached(Merger):
    ordered = True

    def assign(self, tokens: Tokens, keep: int, context: Context) -> tuple[Tensor, None]:
        tokens.x.detach_()
        return torch.arange(len(tokens)).clamp(max=keep - 1), None


class BatchMates(Pruner):
    """Centres by a running mean of the slides it has seen."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.mean = torch.zeros(dim)

    def score(self, tokens: Tokens, context: Context) -> Tensor:
        self.mean = 0.5 * self.mean + 0.5 * tokens.x.float().mean(0)
        return (tokens.x.float() - self.mean).norm(dim=1)


class CarriedGenerator(Pruner):
    ordered = True

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.seed = 0

    def score(self, tokens: Tokens, context: Context) -> Tensor:
        self.seed += 1
        return torch.rand(len(tokens), generator=torch.Generator().manual_seed(self.seed))


class GlobalGenerator(Pruner):
    ordered = True

    def score(self, tokens: Tokens, context: Context) -> Tensor:
        return torch.rand(len(tokens))


class FrozenGlobalGenerator(Pruner):
    """Reads a global generator and puts it back."""

    ordered = True

    def score(self, tokens: Tokens, context: Context) -> Tensor:
        with torch.random.fork_rng():
            return torch.rand(len(tokens))


class QuadraticMemory(Merger):
    """ToMe by the full matrix of all pairs."""

    max_drop = 0.5
    ordered = True

    def assign(self, tokens: Tokens, keep: int, context: Context) -> tuple[Tensor, None]:
        unit = torch.nn.functional.normalize(context.mean_keys(), dim=1)
        nearest = (unit @ unit.T)[1::2, ::2].argmax(1)
        drop = len(tokens) - keep
        home = torch.arange(len(tokens))
        home[1 : 2 * drop : 2] = 2 * nearest[:drop]
        return ((home == torch.arange(len(tokens))).cumsum(0) - 1)[home], None


class RaisesAtOne(Pruner):
    def score(self, tokens: Tokens, context: Context) -> Tensor:
        return tokens.x.float().norm(dim=1)

    def _identity(self, tokens: Tokens, context: Context) -> Reduction:
        tokens.coords[1]
        return super()._identity(tokens, context)


class RaisesAtTwo(Pruner):
    def score(self, tokens: Tokens, context: Context) -> Tensor:
        return torch.cdist(tokens.x.float(), tokens.x.float()).topk(3, largest=False).values.mean(1)


class EqualTokens(Pruner):
    def score(self, tokens: Tokens, context: Context) -> Tensor:
        spread = tokens.x.float().std(0).max()
        if spread == 0:
            raise ZeroDivisionError("no spread")
        return tokens.x.float().norm(dim=1) / spread


class UndeclaredOrder(Pruner):
    def score(self, tokens: Tokens, context: Context) -> Tensor:
        return -torch.arange(len(tokens), dtype=torch.float32)


class WritesInPlace(Pruner):
    def score(self, tokens: Tokens, context: Context) -> Tensor:
        tokens.coords.zero_()
        return tokens.x.float().norm(dim=1)


class ChangesTheIdentity(Pruner):
    def score(self, tokens: Tokens, context: Context) -> Tensor:
        return tokens.x.float().norm(dim=1)

    def _identity(self, tokens: Tokens, context: Context) -> Reduction:
        return super()._identity(tokens.replace_x(tokens.x * 2), context)


class CountsItsCalls(Pruner):
    """Chooses otherwise when it is asked again: what recomputation does to a carried generator."""

    ordered = True

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.calls = 0

    def score(self, tokens: Tokens, context: Context) -> Tensor:
        self.calls += 1
        return torch.arange(len(tokens)).float() * (-1) ** self.calls


BROKEN: list[tuple[type[Reducer], str]] = [
    (WrongCount, "count"),
    (FixedThatIsNot, "count"),
    (NaN, "finite"),
    (NaNTokens, "finite"),
    (LostPatches, "patches"),
    (NoAssign, "patches"),
    (ForeignOrigin, "patches"),
    (OtherDtype, "dtype"),
    (RanksInHalf, "dtype"),
    (LeakyGradient, "stop-gradient"),
    (PromisedSummary, "stop-gradient"),
    (NeverTaught, "gradient"),
    (Detached, "gradient"),
    (BatchMates, "batch mates"),
    (CarriedGenerator, "batch mates"),
    (GlobalGenerator, "global generator"),
    (FrozenGlobalGenerator, "global generator"),
    (QuadraticMemory, "memory"),
    (RaisesAtOne, "one token"),
    (RaisesAtTwo, "two tokens"),
    (EqualTokens, "equal tokens"),
    (UndeclaredOrder, "row order"),
    (WritesInPlace, "unchanged input"),
    (ChangesTheIdentity, "identity"),
    (CountsItsCalls, "checkpointed"),
]


def broken(reducer: Callable[[int], Reducer]) -> dict[str, Promise]:
    return {promise.name: promise for promise in check_reducer(reducer) if promise.kept is False}


@pytest.mark.parametrize(("reducer", "promise"), BROKEN, ids=[reducer.__name__ for reducer, _ in BROKEN])
def test_a_broken_reducer_is_caught_by_the_name_of_its_promise(reducer: type[Reducer], promise: str) -> None:
    assert promise in broken(reducer)


def test_only_the_broken_promise_is_called_broken() -> None:
    only = [WrongCount, FixedThatIsNot, LostPatches, NoAssign, RaisesAtOne, UndeclaredOrder, QuadraticMemory]
    assert {one.__name__: list(broken(one)) for one in only} == {
        one.__name__: [promise for known, promise in BROKEN if known is one] for one in only
    }


def test_the_smallest_input_is_told() -> None:
    assert broken(WrongCount)["count"].detail.startswith("N=3 keep=1: WrongCount returned 2 tokens")
    assert broken(RaisesAtOne)["one token"].detail.startswith("N=1 keep=1: raises IndexError")
    assert "8192" in broken(QuadraticMemory)["memory"].detail


def test_what_cannot_be_tried_is_not_called_kept() -> None:
    untried = [promise for promise in check_reducer(WrongCount) if promise.kept is None]
    assert {"deterministic", "patches"} <= {promise.name for promise in untried}
    assert all("breaks `count`" in promise.detail for promise in untried)


class TestInherited(ReducerConformance):
    reducer = ToMe


class TestInheritedSpec(ReducerConformance):
    reducer = "random"


def test_the_inherited_class_has_a_test_for_every_promise() -> None:
    tests = [name for name in dir(TestInherited) if name.startswith("test_")]
    assert len(tests) == len(PROMISES)


def test_an_inherited_test_fails_on_a_broken_reducer() -> None:
    class Suite(ReducerConformance):
        reducer = WrongCount

    with pytest.raises(AssertionError, match="N=3 keep=1"):
        Suite().test_count()
    Suite.reducer = RandomPruning
    Suite().test_count()
