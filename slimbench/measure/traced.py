"""FLOPs three ways in one run: stated, by torch's FlopCounterMode, by fvcore.

The encoder runs once, traced by torch.jit for fvcore, with FlopCounterMode watching inside; what the
encoder states of itself needs no run. All are 2 x multiply-accumulates (fvcore counts 1), part by part,
and have to agree to the unit: a disagreement is an error that names the part and the numbers.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from slimbench.encoder import Encoded, SlideInput
from slimbench.errors import SlimbenchError
from slimbench.measure.counters import Counted, UncountedError, check_counted, count, outermost
from slimbench.measure.flops import Flops, Work
from slimbench.measure.passes import Pass
from slimbench.tokens import Tokens


class DisagreementError(SlimbenchError):
    """Two counts of the same work differ."""


@dataclass(frozen=True)
class ThreeWays:
    """The FLOPs of one slide. stated: None where the encoder states nothing."""

    stated: Work | None
    torch: Counted
    fvcore: Counted
    encoded: Encoded


def three_ways(run: Pass, slide: SlideInput) -> ThreeWays:
    """Count `run` on `slide`. Raises UncountedError and DisagreementError."""
    traced = _Traced(run, slide)
    fvcore = _fvcore(traced, (slide.tokens.x, slide.tokens.coords))
    counted, encoded = traced.counted, traced.encoded
    assert counted is not None and encoded is not None
    stated = Flops(run.encoder, run.plan)(len(slide.tokens), encoded.counts[0])
    check_agreement({"FlopCounterMode": counted.parts, "fvcore": fvcore.parts})
    if stated is not None:
        # A reducer states nothing: what was counted on made tokens may differ from what this slide asked for.
        reducers = {part for part in stated.parts if part.startswith("reducers.")}
        encoder = {part: flops for part, flops in counted.parts.items() if part not in reducers}
        own = {part: flops for part, flops in stated.parts.items() if part not in reducers}
        check_agreement({"stated": own, "FlopCounterMode": encoder})
    return ThreeWays(stated, counted, fvcore, encoded)


def check_agreement(counts: Mapping[str, Mapping[str, int]]) -> None:
    """counts: {who: {part: FLOPs}}; parts of no FLOPs may be missing. Raises DisagreementError."""
    for part in sorted({part for parts in counts.values() for part in parts}):
        found = {who: parts.get(part, 0) for who, parts in counts.items()}
        if len(set(found.values())) > 1:
            numbers = ", ".join(f"{who} {flops:,}" for who, flops in found.items())
            raise DisagreementError(f"FLOPs of {part or 'the encoder itself'} disagree: {numbers}")


class _Traced(nn.Module):
    """A pass as torch.jit can trace it: tensors in, a tensor out; counted and encoded are set by the run."""

    def __init__(self, run: Pass, slide: SlideInput) -> None:
        super().__init__()
        self.encoder = run.encoder
        self.run = run
        self.slide = slide
        self.counted: Counted | None = None
        self.encoded: Encoded | None = None

    def forward(self, x: Tensor, coords: Tensor) -> Tensor:
        slide = replace(self.slide, tokens=Tokens.of(x, coords))
        found: list[Encoded] = []
        self.counted = count(lambda: found.append(self.run(slide)), type(self.encoder).__name__)
        self.encoded = found[0]
        return found[0].embedding


def _fvcore(model: _Traced, inputs: tuple[Tensor, Tensor]) -> Counted:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fvcore's deprecations, and what the tracer says of Python numbers
        from fvcore.nn import FlopCountAnalysis

        analysis = FlopCountAnalysis(model, inputs).set_op_handle(**_handles())
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
        with torch.inference_mode():
            try:
                operations = {name: 2 * int(macs) for name, macs in analysis.by_operator().items()}
            except RuntimeError as error:  # such as an autograd.Function
                raise UncountedError(
                    f"torch.jit cannot trace this encoder, so fvcore cannot count it: {error}"
                ) from error
    check_counted({name.removeprefix("aten::") for name in analysis.unsupported_ops()}, "fvcore")
    by_module = {name: 2 * int(macs) for name, macs in analysis.by_module().items()}
    parts = outermost(by_module, "encoder")
    return Counted({"": sum(operations.values()) - sum(parts.values()), **parts}, operations)


Handle = Callable[[Any, Any], int]


def _handles() -> dict[str, Handle]:
    """Multiply-accumulates from the shapes of a traced node: what fvcore lacks, and 0 where it counts work
    that is left out on purpose."""

    def shape(value: Any) -> list[int]:
        sizes: list[int] = value.type().sizes()
        return sizes

    def product(contracted: int) -> Handle:
        """Numbers in the output times the last axis of input number `contracted`."""
        return lambda inputs, outputs: prod(shape(outputs[0])) * shape(inputs[contracted])[-1]

    def attention(inputs: Any, outputs: Any) -> int:
        (*rows, width), keys, values = map(shape, inputs[:3])
        return prod(rows) * keys[-2] * (width + values[-1])

    def einsum(inputs: Any, outputs: Any) -> int:
        terms = inputs[0].toIValue().replace(" ", "").partition("->")[0].split(",")
        shapes = map(shape, inputs[1].node().inputs())
        if len(terms) != 2 or "." in "".join(terms):
            raise UncountedError(
                f"einsum {','.join(terms)!r}: only two operands without an ellipsis are counted"
            )
        sizes = {
            index: size
            for term, sizes in zip(terms, shapes, strict=True)
            for index, size in zip(term, sizes, strict=True)
        }
        return prod(sizes.values())

    def nothing(inputs: Any, outputs: Any) -> int:
        return 0

    groups: dict[Handle, tuple[str, ...]] = {
        product(0): ("matmul", "mm", "bmm", "mv", "dot", "vdot", "linear", "cdist"),
        product(1): ("addmm", "baddbmm", "addmv"),
        attention: ATTENTION,
        einsum: ("einsum",),  # fvcore's own reads a printed number and is off by rounding
        nothing: ("layer_norm", "batch_norm", "group_norm", "instance_norm"),
    }
    return {f"aten::{name}": handle for handle, names in groups.items() for name in names}


ATTENTION = (
    "scaled_dot_product_attention",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
)
