"""The promises, one function each: it returns what it saw, or raises Broken with the smallest input.

Cases go from small to large, so the first that fails is the smallest. What the sealed call finds by itself
(wrong count, NaN, another dtype, patches that nobody can find) arrives as a ReducerError that names its promise.
"""

from __future__ import annotations

import copy
import math
import random
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from slimbench.conformance.cases import made_context
from slimbench.conformance.memory import LargestTensor
from slimbench.conformance.trial import SIZES, Trial, blamed, require
from slimbench.reducer import Context, Reducer, Reduction
from slimbench.tokens import Tokens

GROWTH = (2048, 8192)  # tokens between which memory and time are compared
MOST_MEMORY = 1.3  # exponent of N; 1 is linear, 2 is an N x N matrix


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
        require(_equal(low.assign, full.assign), tokens, keep, what)
    return "fp32 and bf16"


def deterministic(trial: Trial) -> str:
    """The same tokens and seed give the same result bit by bit, with and without a trace."""
    for training in (False, True):
        for tokens, keep in trial.cases():
            one, two = (trial.run("deterministic", tokens, keep, training=training) for _ in range(2))
            require(_same(one, two), tokens, keep, "two calls with one seed differ")
            untraced = made_context(tokens, training=training, trace=False)
            plain = trial.run("deterministic", tokens, keep, training=training, context=untraced)
            require(_equal(one.tokens.x, plain.tokens.x), tokens, keep, "a trace changes the result")
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
        require(_equal(_grouping(ours), _grouping(theirs)), tokens, keep, what)
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


def gradient(trial: Trial) -> str:
    """In training, gradients reach the tokens that go on and every parameter of the reducer."""
    for tokens, keep in trial.cases():
        for kept in (keep, len(tokens)):
            reducer, leaf = trial.build(True), tokens.replace_x(tokens.x.clone().requires_grad_())
            reduced = trial.run("gradient", leaf, kept, reducer=reducer, training=True)
            flows = reduced.tokens.x.requires_grad
            require(flows, tokens, kept, "the tokens that go on carry no gradient: something detached them")
            parts = (reduced.tokens.x, reduced.summary, reduced.loss)
            sum((part.square().sum() for part in parts if part is not None), torch.zeros(())).backward()
            reached = leaf.x.grad is not None and bool(leaf.x.grad.isfinite().all() and leaf.x.grad.any())
            require(reached, tokens, kept, "the gradient of the tokens is zero, NaN or missing")
            for name, parameter in reducer.named_parameters():
                what = f"parameter {name} gets no gradient: a ranking has none, so teach it by `supervise`, a gate or a loss"
                require(not parameter.requires_grad or parameter.grad is not None, tokens, kept, what)
    return "reaches the tokens" + (" and every parameter" if [*trial.build().parameters()] else "")


def stop_gradient(trial: Trial) -> str:
    """A summary comes in training only, and sends no gradient into the encoder unless `detach` is False."""
    reducer = trial.build(True)
    for tokens, keep in trial.cases():
        for kept in (keep, len(tokens)):
            leaf = tokens.replace_x(tokens.x.clone().requires_grad_())
            context = made_context(leaf, training=True)
            context.cls.requires_grad_()
            summary = trial.run("stop-gradient", leaf, kept, reducer=reducer, context=context).summary
            what = "`supervised` promises a summary [D] in training and none otherwise"
            promised = None if not reducer.supervised else (trial.dim,)
            require((None if summary is None else tuple(summary.shape)) == promised, tokens, kept, what)
            require(trial.run("stop-gradient", tokens, kept).summary is None, tokens, kept, what)
            if summary is not None and reducer.detach:
                summary.sum().backward()
                reached = leaf.x.grad is not None or context.cls.grad is not None
                require(not reached, tokens, kept, "the summary's gradient reaches the encoder")
    if not reducer.supervised:
        return "no summary, none promised"
    return (
        "the summary stops at the encoder" if reducer.detach else "declared: the summary teaches the encoder"
    )


def checkpointed(trial: Trial) -> str:
    """Activation checkpointing, which calls it twice, changes neither result nor gradient."""
    for tokens, keep in trial.cases():
        context = made_context(tokens, training=True)
        found = []
        for recompute in (False, True):
            reducer, x = trial.build(True), tokens.x.clone().requires_grad_()
            with blamed("checkpointed", tokens, keep):
                out = _reduced(reducer, x, tokens, keep, context, recompute)
                ramp = torch.arange(len(out)).unsqueeze(1)
                (out.square() * ramp).sum().backward()
            found.append((out.detach(), x.grad))
        same = all(_equal(a, b) for a, b in zip(*found, strict=True))
        require(same, tokens, keep, "checkpointing changes the result or the gradient")
    return "= not checkpointed"


def _reduced(
    reducer: Reducer, x: Tensor, tokens: Tokens, keep: int, context: Context, recompute: bool
) -> Tensor:
    """[K, D] what `reducer` makes of tokens with embeddings x; `recompute` as under checkpointing."""

    def call(x: Tensor) -> Tensor:
        reduction: Reduction = reducer(tokens.replace_x(x), keep, context)
        return reduction.tokens.x

    out: Tensor = checkpoint(call, x, use_reentrant=False) if recompute else call(x)
    return out


def memory(trial: Trial) -> str:
    """Memory grows about linearly with the tokens: no N x N matrix. Time is told beside it, not judged."""
    reducer, largest, spent = trial.build(), [], []
    for n in GROWTH:
        tokens = trial.slide(n)
        with torch.no_grad():
            with LargestTensor() as seen:
                trial.run("memory", tokens, n // 2, reducer=reducer)
            began = time.process_time()
            trial.run("memory", tokens, n // 2, reducer=reducer)
        largest.append(seen.bytes / 2**20)
        spent.append((time.process_time() - began) * 1000)
    power, of_time = (math.log(high / low, GROWTH[1] / GROWTH[0]) for low, high in (largest, spent))
    told = (
        f"largest tensor {largest[0]:.2f} -> {largest[1]:.2f} MiB from {GROWTH[0]} to {GROWTH[1]} tokens, "
        f"N^{power:.1f}; {spent[0]:.1f} -> {spent[1]:.1f} CPU ms, N^{of_time:.1f}"
    )
    require(power <= MOST_MEMORY, tokens, n // 2, f"{told}; work in strips or windows")
    return told


def _equal(one: Tensor | None, two: Tensor | None) -> bool:
    return one is two or (one is not None and two is not None and torch.equal(one, two))


def _same(one: Reduction, two: Reduction) -> bool:
    """Equal bit by bit: tokens, assignment, scores, summary."""
    fields = [
        (r.tokens.x, r.tokens.coords, r.tokens.size, r.tokens.origin, r.assign, r.scores, r.summary)
        for r in (one, two)
    ]
    return all(_equal(a, b) for a, b in zip(*fields, strict=True))


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
