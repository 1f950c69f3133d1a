"""What a token reducer is, and the sealed call around it.

An encoder runs blocks over a slide's tokens and, between blocks, hands the patch tokens to a reducer
with the number to keep. A reducer's author writes ONE method:

    Pruner.score(tokens, context)          -> [N]       keep the best
    Merger.assign(tokens, keep, context)   -> [N], ...  average groups
    Pooler.weights(tokens, keep, context)  -> [K, N]    mix everything into K slots
    Reducer.reduce(tokens, keep, context)  -> Reduction when none of the three fits

Everything else is done once, here: ranking in fp32 with ties broken by row, the number kept, the identity
when nothing has to go, several rounds where one may not drop enough, raster order, and the checks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from slimbench.context import Context
from slimbench.errors import ReducerError, UsageError
from slimbench.tokens import Tokens, heaviest


@dataclass(frozen=True)
class Reduction:
    """What a reducer hands back.

    tokens   the K tokens that go on
    assign   [N] int64: the new row of each old token, -1 = dropped; None only from a pruner without trace
    scores   [N] fp32, the higher the longer kept; None where the method has no score
    summary  [D] a prediction of the slide's embedding from its patches, supervised by the trainer
    loss     scalar, added to the training loss
    """

    tokens: Tokens
    assign: Tensor | None = None
    scores: Tensor | None = None
    summary: Tensor | None = None
    loss: Tensor | None = None

    @classmethod
    def keeping(cls, tokens: Tokens, rows: Tensor) -> Reduction:
        """The tokens at `rows` [K] int64, each at most once, go on unchanged; all others are dropped."""
        return cls(tokens.take(rows), assign=rows_of(rows, len(tokens)))


class Reducer(nn.Module):
    """Base of all reducers.

    dim         width D of the tokens it will meet

    Whatever else `__init__` takes are the reducer's arguments: typed, with defaults, and so written on the
    command line (`cropr:detach=false`).

    Attributes that a subclass may set:
    count       "exact": min(keep, N) tokens leave; "at_most": one to `keep`; "fixed": its own number
    max_drop    largest share of tokens that one round may take (ToMe: a half); beyond it, rounds
    supervised  True if `supervise` returns a summary that the trainer aligns with the report
    detach      True if the summary sends no gradient into the encoder: `supervise` then sees detached tokens
    lr_scale    its learning rate as a multiple of the encoder's
    ordered     True if its choice depends on the order of the rows, and not only on the tokens themselves
    """

    count: Literal["exact", "at_most", "fixed"] = "exact"
    max_drop: float = 1.0
    supervised: bool = False
    detach: bool = True
    lr_scale: float = 1.0
    ordered: bool = False

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "forward" in cls.__dict__ and cls.__module__ != __name__:
            raise TypeError(
                f"{cls.__name__} overrides forward, which is sealed; write score (Pruner), assign (Merger), "
                "weights (Pooler) or reduce (Reducer)"
            )

    def reduce(self, tokens: Tokens, keep: int, context: Context) -> Reduction:
        """Reduce N tokens to `keep` < N. Set `assign`; anything else is optional."""
        raise NotImplementedError(f"{type(self).__name__} defines neither score, assign, weights nor reduce")

    def supervise(self, tokens: Tokens, context: Context) -> Tensor | None:
        """Training only, at every call: a summary [D] of all N tokens, which the trainer aligns with the
        report; `supervised` says that there is one."""
        return None

    @final  # type: ignore[misc]  # torch types forward as an attribute
    def forward(self, tokens: Tokens, keep: int, context: Context) -> Reduction:
        """The sealed call. tokens: N; keep: >= 1. Raises ReducerError when a promise is broken."""
        if keep < 1:
            raise UsageError(f"{type(self).__name__}: at least one token must be kept, got keep={keep}")
        context = replace(context, tokens=tokens)
        with torch.autocast(tokens.device.type, enabled=False):  # or scores would be ranked in bf16
            if self.count == "fixed" or keep < len(tokens):
                reduction = self._rounds(tokens, keep, context)
            else:
                reduction = self._identity(tokens, context)
            if context.training and self.supervised:
                seen = tokens.replace_x(tokens.x.detach()) if self.detach else tokens
                cls_token = context.cls.detach() if self.detach else context.cls
                summary = self.supervise(seen, replace(context, tokens=seen, cls=cls_token))
                reduction = replace(reduction, summary=summary)
        return reduction

    def _identity(self, tokens: Tokens, context: Context) -> Reduction:
        rows = torch.arange(len(tokens), device=tokens.device) if context.trace else None
        loss = None
        if context.training and not self.supervised:
            # A parameter without a gradient on one rank stalls data-parallel training.
            unused = [(parameter * 0).sum() for parameter in self.parameters() if parameter.requires_grad]
            loss = sum(unused[1:], unused[0]) if unused else None
        return Reduction(tokens, assign=rows, loss=loss)

    def _rounds(self, tokens: Tokens, keep: int, context: Context) -> Reduction:
        current, reduction = tokens, None
        while reduction is None or (self.count == "exact" and len(current) > keep):
            least = len(current) - max(1, int(self.max_drop * len(current)))
            target = keep if self.count == "fixed" else max(keep, least)
            step = self.reduce(current, target, replace(context, tokens=current))
            step = self._in_order(self._checked(step, current, target), current)
            reduction = step if reduction is None else _composed(reduction, step)
            current = step.tokens
        return reduction

    def _checked(self, reduction: Reduction, before: Tokens, keep: int) -> Reduction:
        """`reduction` itself, or a ReducerError that says which promise was broken."""
        name, after = type(self).__name__, reduction.tokens
        k, n, assign = len(after), len(before), reduction.assign
        if self.count == "exact" and k != keep:
            raise ReducerError(f"{name} returned {k} tokens where {keep} of {n} were asked for", "count")
        if k < 1 or (self.count == "at_most" and k > keep):
            raise ReducerError(f"{name} returned {k} tokens where 1 to {keep} were allowed", "count")
        if after.x.dtype != before.x.dtype or after.x.device != before.x.device:
            raise ReducerError(
                f"{name} returned {after.x.dtype} on {after.x.device}, "
                f"got {before.x.dtype} on {before.x.device}",
                "dtype",
            )
        if after.x.shape[1:] != before.x.shape[1:]:
            raise ReducerError(
                f"{name} returned tokens of width {tuple(after.x.shape[1:])}, got {self.dim}", "dtype"
            )
        whole = after.x.detach().sum(dtype=torch.float32) + after.coords.sum() + after.size.sum()
        if not bool(whole.isfinite()):
            raise ReducerError(f"{name} returned NaN or infinite tokens, coordinates or sizes", "finite")
        if assign is None and not isinstance(self, Pruner):
            raise ReducerError(
                f"{name} returned no assign, so nobody could say where a patch went", "patches"
            )
        if assign is not None and (assign.shape != (n,) or int(assign.min()) < -1 or int(assign.max()) >= k):
            raise ReducerError(f"{name}: assign must be [{n}] with values in [-1, {k})", "patches")
        return reduction

    def _in_order(self, reduction: Reduction, before: Tokens) -> Reduction:
        """Rows back in raster order: a token at the place of its heaviest member, a made one (origin -1)
        at the mean place of its members, one without members at the end."""
        if reduction.assign is None or isinstance(self, (Pruner, Merger, Pooler)):
            return reduction  # they number their tokens themselves
        n, k = len(before), len(reduction.tokens)
        group = torch.where(reduction.assign < 0, k, reduction.assign)  # the dropped are group k
        place = heaviest(group, k + 1, before.size)[:k].float()
        if bool((reduction.tokens.origin < 0).any()):
            rows = torch.arange(n, dtype=torch.float32, device=before.device)
            weight = torch.zeros(k + 1, device=before.device).index_add(0, group, before.size)
            mean = torch.zeros_like(weight).index_add(0, group, before.size * rows) / weight
            mean = torch.where(weight > 0, mean, n)[:k]
            place = torch.where(reduction.tokens.origin < 0, mean, place)
        order = torch.argsort(place, stable=True)
        rank = torch.empty_like(order)
        rank[order] = torch.arange(k, device=order.device)
        if bool((rank[1:] > rank[:-1]).all()):
            return reduction
        moved = torch.where(reduction.assign < 0, -1, rank[reduction.assign.clamp(min=0)])
        return replace(reduction, tokens=reduction.tokens.take(order), assign=moved)


class Pruner(Reducer):
    """Keeps the tokens with the highest scores; write `score`.

    order   "raster": tokens leave in the order of the slide's rows; "score": by descending score,
            as the official Cropr does. In LongNet the order decides who meets whom.
    """

    def __init__(self, dim: int, *, order: Literal["raster", "score"] = "raster") -> None:
        super().__init__(dim)
        self.order = order

    def score(self, tokens: Tokens, context: Context) -> Tensor:
        """[N] scores, the higher the better; called without gradients. NaN is an error."""
        raise NotImplementedError(f"{type(self).__name__} does not define score")

    @final
    def reduce(self, tokens: Tokens, keep: int, context: Context) -> Reduction:
        scores = self._scores(tokens, context)
        best = top_rows(scores, keep)
        rows = best if self.order == "score" else best.sort().values
        if not context.trace:
            return Reduction(tokens.take(rows))
        return replace(Reduction.keeping(tokens, rows), scores=scores)

    def _identity(self, tokens: Tokens, context: Context) -> Reduction:
        identity = super()._identity(tokens, context)
        return replace(identity, scores=self._scores(tokens, context)) if context.trace else identity

    def _scores(self, tokens: Tokens, context: Context) -> Tensor:
        with torch.no_grad():
            scores = self.score(tokens, context).float()  # bf16 leaves ties at the cut, fp32 none
        if scores.shape != (len(tokens),) or bool(scores.isnan().any()):
            found = "NaN" if scores.shape == (len(tokens),) else f"shape {tuple(scores.shape)}"
            raise ReducerError(
                f"{type(self).__name__}: score must be [{len(tokens)}] numbers, got {found}", "finite"
            )
        return scores


class Merger(Reducer):
    """Averages groups of tokens; write `assign`."""

    def assign(self, tokens: Tokens, keep: int, context: Context) -> tuple[Tensor, Tensor | None]:
        """(group [N] int64 in [0, keep), each with a member; weights [N] of the mean or None = size)."""
        raise NotImplementedError(f"{type(self).__name__} does not define assign")

    @final
    def reduce(self, tokens: Tokens, keep: int, context: Context) -> Reduction:
        group, weight = self.assign(tokens, keep, context)
        fits = group.shape == (len(tokens),) and int(group.min()) >= 0
        if not fits or not bool((members := torch.bincount(group)).all()):
            raise ReducerError(
                f"{type(self).__name__}: assign must give each of {len(tokens)} tokens a group in "
                f"[0, {keep}), and each group a member",
                "patches",
            )
        # Numbered by the row they will stand at, the groups leave in raster order.
        order = heaviest(group, len(members), tokens.size if weight is None else weight).argsort()
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(order), device=order.device)
        group = rank[group]
        return Reduction(tokens.merge(group, len(members), weight), assign=group)


class Pooler(Reducer):
    """Mixes all tokens into slots, which leave in the order of the slots; write `weights`."""

    def weights(self, tokens: Tokens, keep: int, context: Context) -> Tensor:
        """[K, N] fp32, non-negative, each row summing to 1: slot k is the mean of x under row k."""
        raise NotImplementedError(f"{type(self).__name__} does not define weights")

    @final
    def reduce(self, tokens: Tokens, keep: int, context: Context) -> Reduction:
        w = self.weights(tokens, keep, context).float()
        # A patch's size is shared out in proportion to its weights; far from all slots they underflow to 0.
        total = w.detach().sum(0)
        share = torch.where(total > 0, w.detach() / total, 1 / len(w))
        made = Tokens(
            (w @ tokens.x.float()).to(tokens.x.dtype),
            w.detach() @ tokens.coords,
            share @ tokens.size,
            torch.full((len(w),), -1, dtype=torch.int64, device=tokens.device),
        )
        return Reduction(made, assign=w.detach().argmax(0))


def top_rows(scores: Tensor, keep: int) -> Tensor:
    """Rows of the `keep` highest of scores [N], best first, ties to the lower row: [keep] int64.

    A stable sort, not topk: topk leaves ties to the backend, and on slides with equal patches the
    choice would then depend on the machine.
    """
    return torch.sort(scores, descending=True, stable=True).indices[:keep]


def rows_of(index: Tensor, n: int) -> Tensor:
    """The inverse of `take(index)`: [n] int64, the new row of each old one, -1 = not taken."""
    assign = torch.full((n,), -1, dtype=torch.int64, device=index.device)
    assign[index] = torch.arange(len(index), device=index.device)
    return assign


def _composed(first: Reduction, then: Reduction) -> Reduction:
    """Two rounds as one reduction of the first round's input."""
    assign = None
    if first.assign is not None and then.assign is not None:
        assign = torch.where(first.assign >= 0, then.assign[first.assign.clamp(min=0)], first.assign)
    losses = [step.loss for step in (first, then) if step.loss is not None]
    return Reduction(
        then.tokens, assign, first.scores, first.summary, sum(losses[1:], losses[0]) if losses else None
    )


ReducerFactory = Callable[[int], Reducer]
