"""FLOPs: what is stated, what is counted, and that nothing escapes."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from slimbench.encoder import Operation, Plan, SlideInput
from slimbench.encoders.slim import Slim, slim_base, slim_tiny
from slimbench.measure.counters import UncountedError, count, is_free
from slimbench.measure.flops import Flops, count_reducer
from slimbench.measure.passes import Pass
from slimbench.measure.traced import DisagreementError, three_ways
from slimbench.reducer import Context, Pruner, Reducer
from slimbench.registry import reducers
from slimbench.schedule import Geometric, Input, Schedule
from slimbench.tokens import Tokens

DIM, GEOMETRIC = 24, Geometric()


def tiny(reducer: str, schedule: Schedule = GEOMETRIC) -> Slim:
    torch.manual_seed(0)
    encoder = slim_tiny(DIM)
    encoder.place_reducers(lambda dim: reducers.build(reducer, dim=dim), schedule)
    return encoder.eval()


def slide(patches: int) -> SlideInput:
    draw = torch.Generator().manual_seed(patches)
    truth = torch.arange(patches) % 3 == 0
    side = math.isqrt(patches) + 1
    coords = torch.stack((torch.arange(patches) % side, torch.arange(patches) // side), 1)
    return SlideInput("a", Tokens.of(torch.randn(patches, DIM, generator=draw), coords), truth)


def names() -> list[str]:
    """Every reducer; one that wraps another around `norm`."""
    wraps = {
        name: "of" in inspect.signature(plugin.load()).parameters
        for name, plugin in reducers.plugins().items()
    }
    return [f"{name}(norm)" if wrapping else name for name, wrapping in wraps.items()]


@pytest.mark.parametrize(
    ("rate", "real", "padded"),
    [
        (0.0, 2.074, 2.155),
        (0.5, 1.501, 1.562),
        (0.6, 1.371, 1.422),
        (0.7, 1.226, 1.289),
        (0.8, 1.064, 1.120),
        (0.9, 0.866, 0.911),
    ],
)
def test_the_papers_slide_costs_what_was_found_by_hand(rate: float, real: float, padded: float) -> None:
    """TFLOPs of slim-base on 17,182 patches, real work and torchscale's zero-padded segments."""
    with torch.device("meta"):
        encoder = slim_base(768)
    counts = (17_182, *GEOMETRIC.counts(17_182, 6, rate).values())
    work = Flops(encoder, Plan(GEOMETRIC, rate))(17_182, counts)
    assert work is not None
    assert round(work.total / 1e12, 3) == real
    assert round(work.padded / 1e12, 3) == padded


@pytest.mark.parametrize("reducer", names())
@pytest.mark.parametrize("patches", [1, 150, 700])
def test_what_is_stated_is_what_a_run_is_counted_at(reducer: str, patches: int) -> None:
    encoder, plan = tiny(reducer), Plan(GEOMETRIC, 0.7)
    run, encoded = Pass(encoder, plan, "fp32"), []
    counted = count(lambda: encoded.append(run(slide(patches))), "Slim")
    work = Flops(encoder, plan)(patches, encoded[0].counts[0])
    assert work is not None
    assert {part: flops for part, flops in counted.parts.items() if flops} == {
        part: flops for part, flops in work.parts.items() if flops
    }
    assert counted.total == work.total


def test_a_router_costs_one_matrix_vector_product() -> None:
    assert count_reducer(tiny("cropr:keys=identity"), "1", 500, 300) == 2 * 500 * 48
    assert count_reducer(tiny("cropr"), "1", 500, 300) == 2 * (500 + 48) * 48  # folding the keys once


def test_matching_costs_its_keys_and_every_pair_of_its_two_sets_in_every_round() -> None:
    encoder = tiny("tome", Input())
    keys, width = 2 * 48, 24
    one_round = keys * 501 * width + 2 * 251 * 250 * width
    assert count_reducer(encoder, "0", 501, 300) == one_round
    second = keys * 251 * width + 2 * 126 * 125 * width
    assert count_reducer(encoder, "0", 501, 150) == one_round + second


@pytest.mark.parametrize("reducer", ["none", "random"])
def test_reducers_without_products_are_free(reducer: str) -> None:
    assert count_reducer(tiny(reducer), "1", 500, 300) == 0


class Spectral(Pruner):
    def score(self, tokens: Tokens, context: Context) -> torch.Tensor:
        return torch.linalg.svd(tokens.x, full_matrices=False).U[:, 0]


def test_an_operation_that_nobody_counts_is_an_error_that_names_it() -> None:
    encoder = slim_tiny(DIM)
    encoder.place_reducers(Spectral, GEOMETRIC)
    with pytest.raises(UncountedError, match="_linalg_svd"):
        count_reducer(encoder.eval(), "1", 60, 30)


def test_products_are_never_free() -> None:
    for name in (
        "mm",
        "addmm",
        "bmm",
        "baddbmm",
        "mv",
        "addmv",
        "dot",
        "convolution",
        "_cdist_forward",
        "linalg_qr",
        "_scaled_dot_product_flash_attention_for_cpu",
        "_fft_r2c",
        "linear",
        "matmul",
    ):
        assert not is_free(name), name
    for name in ("add_", "gelu", "transpose", "native_layer_norm", "sort", "masked_fill_", "__and__"):
        assert is_free(name), name


def test_a_training_step_counts_the_attention_once_more_in_its_backward_pass() -> None:
    """Forward 2 products; backward the scores again and 4 gradients: 2.5 times the forward."""
    q, k, v = (torch.randn(1, 2, 30, 8, requires_grad=True) for _ in range(3))

    def step() -> None:
        torch.nn.functional.scaled_dot_product_attention(q, k, v).sum().backward()

    found = count(step).operations
    assert found["_scaled_dot_product_flash_attention_for_cpu"] == 4 * 2 * 30 * 30 * 8
    assert found["_scaled_dot_product_flash_attention_for_cpu_backward"] == 10 * 2 * 30 * 30 * 8


def test_an_encoder_that_states_nothing_is_counted_by_running_it() -> None:
    class Silent(Slim):
        def operations(self, patches: int, counts: object) -> None:  # type: ignore[override]
            return None

    encoder = Silent(DIM, width=48, heads=2, depth=2, mlp=96, segments=(64,), ratios=(1,))
    encoder.place_reducers(lambda dim: reducers.build("none", dim=dim), GEOMETRIC)
    assert Flops(encoder, Plan())(10, (10, 10)) is None
    run = Pass(encoder.eval(), Plan(), "fp32")
    assert count(lambda: run(slide(10))).total > 0
    assert isinstance(encoder.reducers["1"], Reducer)


# --- three ways -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reducer", "precision"), [*((name, "fp32") for name in names()), ("cropr", "bf16"), ("tome", "bf16")]
)
def test_three_counts_agree_to_the_unit(reducer: str, precision: str) -> None:
    ways = three_ways(Pass(tiny(reducer), Plan(GEOMETRIC, 0.7), precision), slide(150))
    assert ways.stated is not None
    assert ways.stated.total == ways.torch.total == ways.fvcore.total
    parts = [{p: f for p, f in found.parts.items() if f} for found in (ways.stated, ways.torch, ways.fvcore)]
    assert parts[0] == parts[1] == parts[2]


def test_a_wrong_statement_is_an_error_that_names_the_block() -> None:
    class Boastful(Slim):
        def operations(self, patches: int, counts: Sequence[int]) -> tuple[Operation, ...]:
            first, *rest = super().operations(patches, counts)
            return (replace(first, flops=first.flops - 2), *rest)

    encoder = Boastful(DIM, width=DIM, heads=2, depth=2, mlp=48, segments=(64,), ratios=(1,))
    encoder.place_reducers(lambda dim: reducers.build("none", dim=dim), GEOMETRIC)
    with pytest.raises(DisagreementError, match=r"blocks\.0 disagree: stated [\d,]+, FlopCounterMode [\d,]+"):
        three_ways(Pass(encoder.eval(), Plan(), "fp32"), slide(20))


def test_work_hidden_from_the_tracer_is_an_error() -> None:
    class Hidden(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: torch.Tensor) -> torch.Tensor:
            return x @ x.T @ x

    class Sly(Pruner):
        def score(self, tokens: Tokens, context: Context) -> torch.Tensor:
            return Hidden.apply(tokens.x)[:, 0]

    encoder = slim_tiny(DIM)
    encoder.place_reducers(Sly, GEOMETRIC)
    with pytest.raises(UncountedError, match="Hidden"):
        three_ways(Pass(encoder.eval(), Plan(GEOMETRIC, 0.5), "fp32"), slide(20))
