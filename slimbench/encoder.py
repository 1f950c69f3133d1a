"""What a slide encoder is: anything that turns slides into vectors. One made of blocks, between which reducers
work, is a slimbench.block_encoder.BlockEncoder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from slimbench.errors import UsageError
from slimbench.reducer import ReducerFactory
from slimbench.schedule import Geometric, Schedule
from slimbench.tokens import Tokens
from slimbench.trace import Trace

Reads = Literal["patches", "report", "nothing"]


@dataclass(frozen=True)
class SlideInput:
    """One slide on its way into an encoder.

    tokens.x    [N, D_in] what the encoder reads of it (SlideEncoder.reads), patch features as a rule
    truth       [N] bool, diagnostic patches, or None
    patient     whose slide it is, where that is known
    patch_size  level-0 pixels in a grid unit, where that is known (Patches.patch_size)
    """

    id: str
    tokens: Tokens
    truth: Tensor | None = None
    patient: str | None = None
    patch_size: float | None = None


@dataclass(frozen=True)
class Plan:
    """What happens between the blocks of one forward pass.

    rate  pruning rate in [0, 1); seed and step feed the seeds of random reducers; trace records
    where every patch went
    """

    schedule: Schedule = field(default_factory=Geometric)
    rate: float = 0.0
    seed: int = 0
    step: int = 0
    trace: bool = False


@dataclass(frozen=True)
class Encoded:
    """What an encoder hands back for B slides.

    embedding  [B, D]
    summaries  {block ahead: [B, D]} of supervised reducers, in training only
    loss       scalar sum of the reducers' own losses, or None
    counts     per slide the patch tokens that entered each block (for an encoder without blocks: the pool)
    traces     per slide, when the plan asks for them
    """

    embedding: Tensor
    counts: tuple[tuple[int, ...], ...]
    summaries: dict[int, Tensor] = field(default_factory=dict)
    loss: Tensor | None = None
    traces: tuple[Trace, ...] | None = None


@dataclass(frozen=True)
class Operation:
    """One matrix product of a pass over one slide, as an encoder states it from token counts.

    part    name of the module that does it, as in `named_modules`: "project", "blocks.0"
    name    "qkv", "attention", "fc1", ...
    flops   2 x multiply-accumulates that are done
    padded  the same on zero-padded segments, as torchscale does it; equal where nothing is padded
    """

    part: str
    name: str
    flops: int
    padded: int


class SlideEncoder(nn.Module, ABC):
    """Turns slides into vectors.

    dim    width of the embedding
    depth  number of blocks that a reducer can stand before; 0 for an encoder without blocks

    pretrained  class attribute: True if it comes with weights, and is never trained here
    reads       class attribute: what the tokens of a slide are. "patches": its patches; "report": one token, the
                text tower's vector of its report, zeros where it has none; "nothing": no token, the slide is
                known by its id. Where it reads no patches, the feature files stay closed, `input_dim` is the
                width of the tower's vector (of the cohort's patches for "nothing"), and there are no reducers
    """

    pretrained: ClassVar[bool] = False
    reads: ClassVar[Reads] = "patches"

    dim: int
    depth: int

    def place_reducers(self, factory: ReducerFactory, schedule: Schedule) -> None:
        """Build one reducer for each module of the schedule; an encoder that has no place for them
        raises UsageError."""
        raise UsageError(f"{type(self).__name__} has no place for reducers; write one on BlockEncoder")

    @abstractmethod
    def forward(self, slides: Sequence[SlideInput], plan: Plan) -> Encoded:
        """Encode slides; see Encoded for the shapes."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """What a record says of the encoder beyond its spec, as JSON."""
        return {}

    @property
    def kept_entry(self) -> int:
        """Which entry of a slide's `Encoded.counts` says how many tokens its reducers left of it: the last, -1."""
        return -1

    def look_at(self, slides: Sequence[SlideInput]) -> None:
        """See all slides of a cohort, without tokens, before any is encoded; only where `reads` is "nothing".

        Raises SlimbenchError for a slide that it does not know.
        """

    def budget(self, patches: int, plan: Plan) -> dict[int, int]:
        """Tokens that a reducer is asked to leave of a slide: {block ahead: count}."""
        return plan.schedule.counts(patches, self.depth, plan.rate)

    def operations(self, patches: int, counts: Sequence[int]) -> tuple[Operation, ...] | None:
        """The matrix products of one slide at inference, reducers apart; None: nobody states them, and
        whoever wants to know has to count a run (slimbench.measure.counters).

        patches  of the slide; counts  patch tokens that entered each block (Encoded.counts)
        """
        return None

    def sources(self, index: int, rows: Tensor) -> Tensor | None:
        """[L] bool: the rows of a slide's input to block `index`, [CLS] the first, that its outputs at `rows`
        [L] bool depend on; None where nobody states it."""
        return None

    def attention_backend(self, device: torch.device, dtype: torch.dtype) -> str:
        """Name of the attention kernel that runs for inputs of this kind, for records of what was timed."""
        return "not stated"
