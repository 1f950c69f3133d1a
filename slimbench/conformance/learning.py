"""The promises about gradients: who gets one, who must not, and whether recomputation changes any."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from slimbench.conformance.cases import made_context
from slimbench.conformance.trial import Trial, blamed, equal, require
from slimbench.reducer import Context, Reducer, Reduction
from slimbench.tokens import Tokens


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
        same = all(equal(a, b) for a, b in zip(*found, strict=True))
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
