"""The promises, one function each: it returns what it saw, or raises Broken with the smallest input.

Cases go from small to large, so the first that fails is the smallest. What the sealed call finds by itself
(wrong count, NaN, another dtype, patches that nobody can find) arrives as a ReducerError that names its promise.
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from slimbench.conformance.cases import made_context
from slimbench.conformance.learning import checkpointed, gradient, stop_gradient
from slimbench.conformance.memory import memory
from slimbench.conformance.trial import SIZES, Trial, equal, require
from slimbench.reducer import Reduction


def count(trial: Trial) -> str:
    """As many tokens leave as the count class says."""
    reducer, first = trial.build(), dict[int, int]()
    for tokens, keep in trial.cases():
        k = len(trial.run("count", tokens, keep, reducer=reducer).tokens)
        if reducer.count == "fixed":
            known = first.setdefault(len(tokens), k)
            require(k == known, tokens, keep, f"`fixed`, and {k} tokens left, {known} at another keep")
    return f"{reducer.count}, for {SIZES[0]} to {SIZES[-1]} tokens"


def identity(trial: Trial) -> str:
    """Nothing changes when nothing has to go."""
    reducer = trial.build()
    if reducer.count == "fixed":
        return "fixed: keeps its own number whatever is asked"
    for n in SIZES:
        tokens = trial.slide(n, merged=True)
        for keep in (n, n + 5):
            after = trial.run("identity", tokens, keep, reducer=reducer).tokens
            same = len(after) == n and torch.equal(after.x, tokens.x)
            require(same and torch.equal(after.origin, tokens.origin), tokens, keep, "tokens were changed")
    return "keep >= N returns the tokens as they are"


def one_token(trial: Trial) -> str:
    """A slide of one token is legal."""
    return _small("one token", 1, trial)


def two_tokens(trial: Trial) -> str:
    """A slide of two tokens can be reduced."""
    return _small("two tokens", 2, trial)


def _small(promise: str, n: int, trial: Trial) -> str:
    for training in (False, True):
        for keep in range(1, n + 1):
            trial.run(promise, trial.slide(n), keep, training=training)
    return "runs, in training too"


def equal_tokens(trial: Trial) -> str:
    """A slide of equal patches, such as blank glass, can be reduced."""
    for tokens, keep in trial.cases():
        trial.run("equal tokens", tokens.replace_x(tokens.x[:1].repeat(len(tokens), 1)), keep)
    return "runs"


def finite(trial: Trial) -> str:
    """No NaN and no infinity, whatever the norms of the tokens."""
    for tokens, keep in trial.cases():
        for factor in (1.0, 0.0, 1e-20, 1e6):
            reduced = trial.run("finite", tokens.replace_x(tokens.x * factor), keep, training=True)
            for part in (reduced.scores, reduced.summary, reduced.loss):
                what = f"NaN or infinite scores, summary or loss for x * {factor:g}"
                require(part is None or bool(part.isfinite().all()), tokens, keep, what)
    return "zero and huge tokens included"


def dtype(trial: Trial) -> str:
    """bf16 in, bf16 out, and the choice is made in fp32."""
    many = trial.slide(4000)  # enough for scores at the cut that differ by less than bf16 can tell
    most = trial.build().max_drop
    for tokens, keep in (*trial.cases(), *((many, keep) for keep in (300, 400, 1000, 2000, 3000, 3600))):
        half = tokens.replace_x(tokens.x.bfloat16())
        low = trial.run("dtype", half, keep)
        if keep < (1 - most) * len(tokens):
            continue  # a second round would start from tokens that bf16 has rounded
        full = trial.run("dtype", half.replace_x(half.x.float()), keep)
        what = "tokens in bf16 are reduced otherwise than the same tokens in fp32"
        require(equal(low.assign, full.assign), tokens, keep, what)
    return "fp32 and bf16"


def deterministic(trial: Trial) -> str:
    """The same tokens and seed give the same result bit by bit, with and without a trace."""
    for training in (False, True):
        for tokens, keep in trial.cases():
            one, two = (trial.run("deterministic", tokens, keep, training=training) for _ in range(2))
            require(_same(one, two), tokens, keep, "two calls with one seed differ")
            untraced = made_context(tokens, training=training, trace=False)
            plain = trial.run("deterministic", tokens, keep, training=training, context=untraced)
            require(equal(one.tokens.x, plain.tokens.x), tokens, keep, "a trace changes the result")
    return "bit by bit"


def global_generator(trial: Trial) -> str:
    """Randomness comes from the context's seed: no global generator is read or moved."""
    for training in (False, True):
        for tokens, keep in trial.cases():
            reducer, results = trial.build(training), []
            for seed in (1, 2):
                torch.manual_seed(seed)
                np.random.seed(seed)
                random.seed(seed)
                before = torch.get_rng_state()
                results.append(
                    trial.run("global generator", tokens, keep, reducer=reducer, training=training)
                )
                still = torch.equal(before, torch.get_rng_state())
                require(still, tokens, keep, "draws from torch's global generator; use context.generator()")
            require(_same(*results), tokens, keep, "depends on a global generator; use context.generator()")
    return "neither read nor moved"


def batch_mates(trial: Trial) -> str:
    """A slide's result does not depend on the slides that are reduced beside it."""
    for training in (False, True):
        for tokens, keep in trial.cases():
            alone = trial.build(training)
            after = copy.deepcopy(alone)
            for n, seed in ((40, 1), (7, 2)):
                trial.run("batch mates", trial.slide(n, seed), 5, reducer=after, training=training)
            results = [
                trial.run("batch mates", tokens, keep, reducer=reducer, training=training)
                for reducer in (alone, after)
            ]
            require(_same(*results), tokens, keep, "differs once other slides were reduced before it")
    return "alone = after others"


def row_order(trial: Trial) -> str:
    """The order of the rows decides nothing, unless the reducer is declared `ordered`."""
    if trial.build().ordered:
        return "declared: depends on it"
    for tokens, keep in trial.cases():
        shuffled = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(3))
        one = trial.run("row order", tokens, keep)
        two = trial.run("row order", tokens.take(shuffled), keep)
        what = "shuffled rows are reduced otherwise; if that is meant, set `ordered = True`"
        ours, theirs = one.assign, None if two.assign is None else two.assign[shuffled.argsort()]
        require(equal(_grouping(ours), _grouping(theirs)), tokens, keep, what)
        assert ours is not None and theirs is not None
        stays = ours >= 0
        a, b = one.tokens.x[ours[stays]], two.tokens.x[theirs[stays]]
        require(torch.allclose(a, b, rtol=1e-4, atol=1e-5), tokens, keep, what)
    return "decides nothing"


def patches(trial: Trial) -> str:
    """Every patch is in one token or dropped: sizes add up, and a token stands at one of its own patches."""
    for tokens, keep in trial.cases():
        reduced = trial.run("patches", tokens, keep)
        after, assign = reduced.tokens, reduced.assign
        require(assign is not None, tokens, keep, "no assign although a trace was asked for")
        assert assign is not None
        stays = assign >= 0
        want, got = float(tokens.size[stays].sum()), float(after.size.sum())
        what = f"assign keeps {want:g} patches, the sizes of the tokens sum to {got:g}"
        require(math.isclose(want, got, rel_tol=1e-3), tokens, keep, what)
        held = torch.zeros(len(after)).index_add(0, assign[stays], tokens.size[stays])
        real = after.origin >= 0
        what = "a token's size is not that of the patches assigned to it"
        require(torch.allclose(held[real], after.size[real], rtol=1e-3), tokens, keep, what)
        own = (assign == real.nonzero()) & (tokens.origin == after.origin[real].unsqueeze(1))
        what = "a token stands at a patch (origin) that is not assigned to it"
        require(bool(own.any(1).all()), tokens, keep, what)
    return "sizes add up, origins are members"


def unchanged_input(trial: Trial) -> str:
    """The tokens that are handed in, and [CLS], stay as they were."""
    for tokens, keep in trial.cases():
        context, before = made_context(tokens, training=True), copy.deepcopy(tokens)
        cls_before = context.cls.clone()
        trial.run("unchanged input", tokens, keep, context=context, training=True)
        for name in ("x", "coords", "size", "origin"):
            same = torch.equal(getattr(tokens, name), getattr(before, name))
            require(same, tokens, keep, f"writes into the tokens' {name}")
        require(torch.equal(context.cls, cls_before), tokens, keep, "writes into [CLS]")
    return "nothing is written in place"


def _same(one: Reduction, two: Reduction) -> bool:
    """Equal bit by bit: tokens, assignment, scores, summary."""
    fields = [
        (r.tokens.x, r.tokens.coords, r.tokens.size, r.tokens.origin, r.assign, r.scores, r.summary)
        for r in (one, two)
    ]
    return all(equal(a, b) for a, b in zip(*fields, strict=True))


def _grouping(assign: Tensor | None) -> Tensor | None:
    """[N]: each row's first fellow, -1 = dropped; equal where the groups are, whatever they are called."""
    if assign is None:
        return None
    return torch.where(assign >= 0, (assign == assign.unsqueeze(1)).int().argmax(1), -1)


PROMISES: dict[str, Callable[[Trial], str]] = {
    "count": count,
    "identity": identity,
    "one token": one_token,
    "two tokens": two_tokens,
    "equal tokens": equal_tokens,
    "finite": finite,
    "dtype": dtype,
    "deterministic": deterministic,
    "global generator": global_generator,
    "batch mates": batch_mates,
    "row order": row_order,
    "patches": patches,
    "unchanged input": unchanged_input,
    "gradient": gradient,
    "stop-gradient": stop_gradient,
    "checkpointed": checkpointed,
    "memory": memory,
}
