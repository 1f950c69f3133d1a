"""FLOPs from token counts: what an encoder states of itself, plus what its reducers do.

    flops = Flops(encoder, plan)
    flops(17_182, counts).total

FLOPs are 2 x multiply-accumulates of matrix products and attention (slimbench.measure.counters has the list
of what is left out). The encoder's part is arithmetic on token counts (`SlideEncoder.operations`); a reducer
states nothing, so each is counted once per (block, tokens, keep) on tokens made for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from slimbench.block_encoder import BlockEncoder
from slimbench.encoder import Operation, Plan, SlideEncoder
from slimbench.measure.counters import count
from slimbench.reducer import Context, Reducer
from slimbench.tokens import Tokens


@dataclass(frozen=True)
class Work:
    """What one pass over one slide costs.

    operations  of the encoder
    reducers    {part, as in `named_modules`: FLOPs}
    """

    operations: tuple[Operation, ...]
    reducers: Mapping[str, int]

    @property
    def total(self) -> int:
        """FLOPs that are done."""
        return sum(operation.flops for operation in self.operations) + sum(self.reducers.values())

    @property
    def padded(self) -> int:
        """FLOPs if segments were zero-padded, as torchscale does it."""
        return sum(operation.padded for operation in self.operations) + sum(self.reducers.values())

    @property
    def parts(self) -> dict[str, int]:
        """{part: FLOPs} of everything."""
        parts: dict[str, int] = {}
        for operation in self.operations:
            parts[operation.part] = parts.get(operation.part, 0) + operation.flops
        return parts | dict(self.reducers)


class Flops:
    """FLOPs of a slide from its token counts, for one encoder with its reducers in place."""

    def __init__(self, encoder: SlideEncoder, plan: Plan) -> None:
        self.encoder = encoder
        self.plan = plan
        self._counted: dict[tuple[str, int, int], int] = {}

    def __call__(self, patches: int, counts: Sequence[int]) -> Work | None:
        """The work on a slide of `patches` patches of which counts[i] entered block i; None where the
        encoder does not state its operations. Raises UncountedError for a reducer."""
        operations = self.encoder.operations(patches, counts)
        if operations is None:
            return None
        reducers = {}
        if isinstance(self.encoder, BlockEncoder):
            budget = self.encoder.budget(patches, self.plan)
            entering = (patches, *counts)
            for block in self.encoder.reducers:
                key = (block, entering[int(block)], budget[int(block)])
                if key not in self._counted:
                    self._counted[key] = count_reducer(self.encoder, *key)
                reducers[f"reducers.{block}"] = self._counted[key]
        return Work(operations, reducers)


def count_reducer(encoder: BlockEncoder, block: str, tokens: int, keep: int) -> int:
    """FLOPs of the reducer before `block` on `tokens` random tokens of which `keep` are asked for."""
    reducer, index = encoder.reducers[block], int(block)
    assert isinstance(reducer, Reducer)
    device = next((p.device for p in encoder.parameters()), torch.device("cpu"))
    draw = torch.Generator().manual_seed(0)
    made = Tokens.of(torch.randn(tokens, encoder.dim, generator=draw).to(device))
    context = Context(
        made,
        torch.randn(encoder.dim, generator=draw).to(device),
        index,
        seed=0,
        truth=torch.arange(tokens, device=device) % 2 == 0,
        ahead=encoder.attention(index) if index < encoder.depth else None,
    )
    with torch.inference_mode():
        return count(lambda: reducer(made, keep, context)).total
