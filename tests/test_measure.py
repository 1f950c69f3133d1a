"""What is measured is what happens: time, memory, and the efficiency of a cell."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from slimbench.cohorts.cohort import InMemoryCohort, Patches, Slide
from slimbench.encoder import Encoded, Plan, SlideEncoder, SlideInput
from slimbench.encoders.mean_pool import MeanPool
from slimbench.encoders.slim import Slim, slim_tiny
from slimbench.errors import SlimbenchError
from slimbench.measure.flops import Flops
from slimbench.measure.latency import Timing, matmul_peak, timed
from slimbench.measure.memory import peak_tensor_bytes
from slimbench.measure.passes import Pass, by_size
from slimbench.measure.process import fresh, peak_resident_bytes, resident_bytes, start_peak
from slimbench.measure.reach import reach
from slimbench.reducer import Context, Pruner
from slimbench.registry import reducers
from slimbench.schedule import Geometric
from slimbench.task import Embeddings, Metric
from slimbench.tasks.efficiency import Efficiency
from slimbench.tokens import Tokens
from slimbench.trace import Trace

CPU, DIM, MIB = torch.device("cpu"), 24, 2**20


# --- time ------------------------------------------------------------------------------------------


def test_waiting_takes_the_wall_and_not_the_processor() -> None:
    timing = timed([lambda: time.sleep(0.05)], CPU, repeats=3)
    assert len(timing.wall) == 3
    assert timing.median >= 0.05
    assert timing.core_seconds < 0.02


def test_the_p95_of_few_passes_is_the_longest_and_of_many_interpolated() -> None:
    assert Timing((1.0, 3.0, 2.0), (1.0, 1.0, 1.0)).p95 == 3.0
    many = tuple(float(i) for i in range(101))
    assert Timing(many, many).p95 == 95.0


def test_the_peak_is_that_of_a_matrix_product() -> None:
    a = torch.randn(512, 512)
    best = 2 * 512**3 / min(timed([lambda: a @ a], CPU, repeats=20).cpu)
    assert 0.3 * best < matmul_peak(torch.float32, CPU, size=512) < 3 * best


# --- memory ----------------------------------------------------------------------------------------


def test_the_peak_of_tensors_is_that_of_a_case_worked_out_by_hand() -> None:
    x = torch.zeros(MIB // 4)  # 1 MiB, there before

    def work() -> torch.Tensor:
        a = x + 1  # 1 MiB
        b = torch.cat((a, a, a))  # 4
        del a  # 3
        c = b * 2  # 6, the peak
        del b
        c.add_(1)  # in place: nothing new
        return c.view(3, -1).sum()  # 3 and a number

    assert peak_tensor_bytes(work, CPU) == 6 * MIB


def test_the_resident_peak_counts_what_was_freed_again() -> None:
    before = resident_bytes()
    start_peak()
    torch.ones(16 * MIB)  # 64 MiB
    assert 60 * MIB < peak_resident_bytes() - before < 100 * MIB
    assert resident_bytes() - before < 20 * MIB


def test_an_error_in_a_fresh_process_is_told_in_its_own_words() -> None:
    with pytest.raises(SlimbenchError, match=r"^no encoder is called 'slm'; did you mean slim"):
        fresh("slimbench.measure.profile", '{"encoder": "slm", "reducer": "none", "rate": 0, "patches": 3}')
    with pytest.raises(RuntimeError, match="ValidationError"):
        fresh("slimbench.measure.profile", "{}")


# --- efficiency ------------------------------------------------------------------------------------

SIZES = (5, 20, 31, 64, 100)


def cohort() -> InMemoryCohort:
    draw = np.random.default_rng(0)
    slides = tuple(Slide(f"s{n}", f"p{n}", "test", n) for n in SIZES)
    features = {s.id: Patches(draw.normal(size=(s.patches, DIM)).astype(np.float32)) for s in slides}
    return InMemoryCohort("five", slides, (), DIM, "report", "hash", features)


@dataclass
class FakeEvidence:
    """The evidence of a cell without training."""

    encoder: SlideEncoder
    plan: Plan
    precision: str = "fp32"

    def __post_init__(self) -> None:
        self.cohort = cohort()
        self.seed, self.rate = 0, self.plan.rate

    def slide(self, slide_id: str) -> SlideInput:
        return SlideInput(slide_id, Tokens.of(torch.from_numpy(self.cohort.patches(slide_id).features)))

    def embeddings(self, split: str) -> Embeddings:
        slides = self.cohort.split(split)
        run = Pass(self.encoder, self.plan, self.precision)
        encoded = [run(self.slide(slide.id)) for slide in slides]
        vectors = np.concatenate([e.embedding.numpy() for e in encoded])
        return Embeddings(slides, vectors, None, tuple(e.counts[0] for e in encoded))


def measured(encoder: SlideEncoder, rate: float) -> tuple[dict[str, Metric], FakeEvidence]:
    evidence = FakeEvidence(encoder.eval(), Plan(Geometric(), rate))
    result = Efficiency(slides=3, repeats=2).run(evidence)  # type: ignore[arg-type]  # what the task asks for
    assert result.facts["timed_patches"] == [5, 31, 100]
    return {metric.name: metric for metric in result.metrics}, evidence


def placed(encoder: SlideEncoder, reducer: str) -> SlideEncoder:
    encoder.place_reducers(lambda dim: reducers.build(reducer, dim=dim), Geometric())
    return encoder


def test_the_efficiency_of_a_cell_rests_on_the_tokens_that_were_kept() -> None:
    encoder = placed(slim_tiny(DIM), "cropr")
    found, evidence = measured(encoder, 0.8)
    counts = [[n, *Geometric().counts(n, 6, 0.8).values()] for n in SIZES]
    flops = Flops(encoder, evidence.plan)
    works = [flops(n, c) for n, c in zip(SIZES, counts, strict=True)]
    assert found["flops"].value == np.mean([work.total for work in works])
    assert found["flops_padded"].value == np.mean([work.padded for work in works])
    assert found["flops"].n == len(SIZES)
    for block, column in enumerate(np.transpose(counts)):
        assert found[f"tokens_block_{block}"].value == column.mean()
    assert found["kept_share"].value == pytest.approx(np.mean([c[-1] / c[0] for c in counts]))
    assert found["latency_median_ms"].n == 6
    assert found["latency_p95_ms"].value >= found["latency_median_ms"].value > 0


def test_the_memory_of_a_cell_is_at_least_its_residual_stream_and_grows_with_it() -> None:
    found, _ = measured(placed(slim_tiny(DIM), "none"), 0.0)
    residual = 101 * 48 * 4 / MIB
    assert residual < found["peak_memory_mib"].value < 50 * residual


def test_an_encoder_without_blocks_has_costs_too() -> None:
    found, _ = measured(placed(MeanPool(DIM), "cropr"), 0.8)
    assert found["flops"].value == np.mean([2 * (n + DIM) * DIM for n in SIZES])
    assert found["tokens_block_0"].value == np.mean([int(n * 0.2) for n in SIZES])
    assert "flops_padded" not in found


def test_a_stated_and_a_counted_encoder_cost_the_same() -> None:
    class Silent(Slim):
        def operations(self, patches: int, counts: object) -> None:  # type: ignore[override]
            return None

    def built(kind: type[Slim]) -> SlideEncoder:
        return placed(kind(DIM, width=48, heads=2, mlp=96, segments=(64, 512), ratios=(1, 2)), "tome")

    assert measured(built(Slim), 0.5)[0]["flops"] == measured(built(Silent), 0.5)[0]["flops"]


def test_uncountable_work_leaves_the_flops_undefined_and_says_why() -> None:
    class Spectral(Pruner):
        def score(self, tokens: Tokens, context: Context) -> torch.Tensor:
            return torch.linalg.svd(tokens.x, full_matrices=False).U[:, 0]

    encoder = slim_tiny(DIM)
    encoder.place_reducers(Spectral, Geometric())
    found, _ = measured(encoder, 0.5)
    assert found["flops"].value is None
    assert "_linalg_svd" in (found["flops"].note or "")
    assert found["latency_median_ms"].value > 0


def test_slides_are_taken_at_equal_steps_of_their_sizes() -> None:
    slides = [Slide(str(n), str(n), "test", n) for n in (7, 3, 9, 1, 5)]
    assert [slide.patches for slide in by_size(slides, 3)] == [1, 5, 9]
    assert [slide.patches for slide in by_size(slides, 50)] == [1, 3, 5, 7, 9]


def test_a_pass_computes_no_gradients_and_bf16_only_where_it_is_asked_for() -> None:
    class Probe(SlideEncoder):
        dim, depth = DIM, 0

        def forward(self, slides: object, plan: Plan) -> Encoded:
            assert torch.is_inference_mode_enabled()
            product = torch.zeros(1, DIM) @ torch.zeros(DIM, DIM)
            return Encoded(product, ((1,),))

    slide = FakeEvidence(MeanPool(DIM), Plan()).slide("s5")
    assert Pass(Probe(), Plan(), "fp32")(slide).embedding.dtype == torch.float32
    assert Pass(Probe(), Plan(), "bf16")(slide).embedding.dtype == torch.bfloat16


# --- reach -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.0, 0.6])
@pytest.mark.parametrize("reducer", ["none", "random", "tome"])
def test_reach_is_where_the_gradient_of_the_embedding_arrives(reducer: str, rate: float) -> None:
    torch.manual_seed(1)
    encoder = Slim(DIM, width=16, heads=4, depth=3, mlp=16, segments=(8, 16), ratios=(1, 4))
    placed(encoder.eval(), reducer)
    x = torch.randn(60, DIM, requires_grad=True)
    encoded = encoder([SlideInput("a", Tokens.of(x))], Plan(Geometric(), rate, trace=True))
    encoded.embedding.square().sum().backward()
    assert x.grad is not None and encoded.traces is not None
    shares = reach(encoder, encoded.traces[0], encoded.counts[0])
    assert shares is not None and len(shares) == 3
    assert shares[-1] == pytest.approx(float((x.grad != 0).any(1).float().mean()))
    assert shares[0] < shares[-1] <= 1


def test_nothing_is_said_of_the_reach_of_an_encoder_that_states_nothing() -> None:
    encoder = placed(MeanPool(DIM), "none")
    assert reach(encoder, Trace(5), (5,)) is None
