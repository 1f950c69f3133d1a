"""Encoders of blocks, and the one loop in which blocks and reducers alternate; write `embed`, `block`, `pool`.

Slides of a batch are packed, not padded: row 0 of each slide is its [CLS], then its patch tokens.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from slimbench.context import AttentionAhead, Context
from slimbench.encoder import Encoded, Plan, SlideEncoder, SlideInput
from slimbench.errors import UsageError
from slimbench.fusion import fused
from slimbench.reducer import Reducer, ReducerFactory
from slimbench.schedule import Schedule
from slimbench.seeds import seed_of
from slimbench.tokens import Tokens
from slimbench.trace import Trace


@dataclass(frozen=True)
class Pack:
    """Slides of a batch, end to end: for each slide its [CLS] row, then its N patch tokens.

    x        [T, D]  T = sum of lengths
    lengths  rows of each slide, [CLS] included
    coords   [T, 2]  fp32 grid units; (0, 0) in [CLS] rows
    size     [T]     fp32; 1 in [CLS] rows
    origin   [T]     int64; -1 in [CLS] rows
    merged   whether any token stands for more than one patch: then log(size) enters the attention
    """

    x: Tensor
    lengths: tuple[int, ...]
    coords: Tensor
    size: Tensor
    origin: Tensor
    merged: bool = False

    @classmethod
    def join(cls, parts: Sequence[tuple[Tensor, Tokens]], merged: bool = False) -> Pack:
        """Pack (cls [D], tokens) pairs; `merged` as in the class."""
        xs: list[Tensor] = []
        coords: list[Tensor] = []
        sizes: list[Tensor] = []
        origins: list[Tensor] = []
        first = parts[0][1]
        zero, one, none = (
            first.coords.new_zeros(1, 2),
            first.size.new_ones(1),
            first.origin.new_full((1,), -1),
        )
        for cls_token, tokens in parts:
            xs += (cls_token.unsqueeze(0), tokens.x)
            coords += (zero, tokens.coords)
            sizes += (one, tokens.size)
            origins += (none, tokens.origin)
        return cls(
            torch.cat(xs),
            tuple(len(tokens) + 1 for _, tokens in parts),
            torch.cat(coords),
            torch.cat(sizes),
            torch.cat(origins),
            merged,
        )

    def slides(self) -> list[tuple[Tensor, Tokens]]:
        """(cls [D], tokens) of each slide, as views."""
        pieces = zip(
            self.x.split(self.lengths),
            self.coords.split(self.lengths),
            self.size.split(self.lengths),
            self.origin.split(self.lengths),
            strict=True,
        )
        return [(x[0], Tokens(x[1:], coords[1:], size[1:], origin[1:])) for x, coords, size, origin in pieces]

    def cls_rows(self) -> Tensor:
        """[B] int64 rows of the [CLS] tokens."""
        ends = torch.tensor((0, *self.lengths[:-1]), device=self.x.device)
        return ends.cumsum(0)


class BlockEncoder(SlideEncoder):
    """An encoder of blocks over packed tokens, with reducers between them.

    fusion         last-layer fusion: what was dropped comes back before the last block (slimbench.fusion), no
                   reducer stands there, and the pruning rate is reached one block earlier
    checkpointing  recompute a block in the backward pass instead of keeping its activations;
                   reducers stand outside, so nothing they draw is drawn twice
    """

    def __init__(self, dim: int, depth: int, *, fusion: bool = False) -> None:
        super().__init__()
        if fusion and depth < 2:
            raise UsageError(f"last-layer fusion wants two blocks or more, and there are {depth}")
        self.dim = dim
        self.depth = depth
        self.fusion = fusion
        self.checkpointing = False
        self.reducers = nn.ModuleDict()

    @abstractmethod
    def embed(self, slides: Sequence[SlideInput]) -> Pack:
        """Project features to width D, put [CLS] before each slide."""

    @abstractmethod
    def block(self, index: int, pack: Pack) -> Tensor:
        """Block `index` over the pack: new x [T, D]."""

    @abstractmethod
    def attention(self, index: int) -> AttentionAhead | None:
        """What block `index` offers a reducer that stands before it."""

    @abstractmethod
    def pool(self, pack: Pack) -> Tensor:
        """[B, D] the slide embeddings, from the output of the last block."""

    @property
    def kept_entry(self) -> int:
        return -2 if self.fusion else -1

    def place_reducers(self, factory: ReducerFactory, schedule: Schedule) -> None:
        self.reducers = nn.ModuleDict(
            {str(block): factory(self.dim) for block in schedule.modules(self.depth - self.fusion)}
        )

    def budget(self, patches: int, plan: Plan) -> dict[int, int]:
        return plan.schedule.counts(patches, self.depth - self.fusion, plan.rate)

    def forward(self, slides: Sequence[SlideInput], plan: Plan) -> Encoded:
        budgets = [self.budget(len(s.tokens), plan) for s in slides]
        traces = tuple(Trace(len(s.tokens)) for s in slides) if plan.trace else None
        dropped: list[list[Tokens]] = [[] for _ in slides]
        pack = self.embed(slides)
        counts: list[tuple[int, ...]] = []
        summaries: dict[int, Tensor] = {}
        losses: list[Tensor] = []
        for index in range(max(self.depth, 1)):
            if str(index) in self.reducers:
                pack, summary, loss = self._reduced(index, pack, slides, budgets, plan, traces, dropped)
                if summary is not None:
                    summaries[index] = summary
                if loss is not None:
                    losses.append(loss)
            if self.fusion and index == self.depth - 1:
                pack = self._fused(pack, dropped, traces)
            counts.append(tuple(length - 1 for length in pack.lengths))
            if index < self.depth:
                pack = replace(pack, x=self._run_block(index, pack))
        per_slide = tuple(zip(*counts, strict=True))
        loss = sum(losses[1:], losses[0]) if losses else None
        return Encoded(self.pool(pack), per_slide, summaries, loss, traces)

    def _run_block(self, index: int, pack: Pack) -> Tensor:
        if self.checkpointing and self.training and torch.is_grad_enabled():

            def run(x: Tensor) -> Tensor:
                return self.block(index, replace(pack, x=x))

            recomputed: Tensor = checkpoint(run, pack.x, use_reentrant=False)
            return recomputed
        return self.block(index, pack)

    def _reduced(
        self,
        index: int,
        pack: Pack,
        slides: Sequence[SlideInput],
        budgets: Sequence[dict[int, int]],
        plan: Plan,
        traces: tuple[Trace, ...] | None,
        dropped: list[list[Tokens]],
    ) -> tuple[Pack, Tensor | None, Tensor | None]:
        """The pack after the reducer before block `index`, its summaries [B, D] and its loss; for fusion, what
        it dropped of each slide is appended to `dropped`."""
        reducer = self.reducers[str(index)]
        assert isinstance(reducer, Reducer)
        ahead = self.attention(index) if index < self.depth else None
        parts, summaries, losses, changed = [], [], [], False
        for number, (cls_token, tokens) in enumerate(pack.slides()):
            slide = slides[number]
            context = Context(
                tokens,
                cls_token,
                index,
                seed_of(plan.seed, slide.id, index, plan.step),
                training=self.training,
                trace=plan.trace or self.fusion,
                truth=slide.truth,
                ahead=ahead,
            )
            reduction = reducer(tokens, budgets[number][index], context)
            parts.append((cls_token, reduction.tokens))
            changed |= reduction.tokens is not tokens  # K slots of K tokens are other tokens
            if reduction.summary is not None:
                summaries.append(reduction.summary)
            if reduction.loss is not None:
                losses.append(reduction.loss)
            if self.fusion:
                dropped[number].append(tokens.take((reduction.assign < 0).nonzero().squeeze(1)))
            if traces is not None:
                traces[number].assigns[index] = reduction.assign.cpu()
                traces[number].origins[index] = reduction.tokens.origin.cpu()
                if reduction.scores is not None:
                    traces[number].scores[index] = reduction.scores.cpu()
        if changed:
            merged = pack.merged or any(bool((tokens.size != 1).any()) for _, tokens in parts)
            pack = Pack.join(parts, merged)
        summary = torch.stack(summaries) if summaries else None
        return pack, summary, sum(losses[1:], losses[0]) / len(losses) if losses else None

    def _fused(self, pack: Pack, dropped: list[list[Tokens]], traces: tuple[Trace, ...] | None) -> Pack:
        parts = []
        for number, (cls_token, tokens) in enumerate(pack.slides()):
            whole, rows = fused(tokens, dropped[number])
            parts.append((cls_token, whole))
            if traces is not None:
                traces[number].fusion = rows.cpu()
        return Pack.join(parts, pack.merged)
