"""Last-layer fusion: what was dropped comes back before the last block, as it was, at its place."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from slimbench.block_encoder import BlockEncoder, Pack
from slimbench.cohorts.cohort import InMemoryCohort, Patches, Slide
from slimbench.context import Context
from slimbench.encoder import Plan, SlideInput
from slimbench.errors import UsageError
from slimbench.measure.passes import Pass
from slimbench.measure.reach import reach
from slimbench.measure.traced import three_ways
from slimbench.registry import encoders, reducers
from slimbench.runs.cell import _kept
from slimbench.runs.evidence import CellEvidence
from slimbench.schedule import Geometric
from slimbench.seeds import seed_of
from slimbench.tasks.efficiency import Efficiency
from slimbench.tasks.reconstruction import Reconstruction
from slimbench.tokens import Tokens
from slimbench.training.slides import SlideLoader

N, D = 60, 12
SLIM = "slim:width=24,depth=4,heads=2,mlp=40,segments=8+16,ratios=1+2,fusion=true"
VIT = "vit:width=24,depth=4,heads=2,fusion=true"
PLAN = Plan(Geometric(), rate=0.7, seed=3, trace=True)


def slide(n: int = N, seed: int = 0) -> SlideInput:
    draw = torch.Generator().manual_seed(seed)
    coords = torch.stack((torch.arange(n) % 8, torch.arange(n) // 8), dim=1)
    return SlideInput(f"slide {seed}", Tokens.of(torch.randn(n, D, generator=draw), coords))


def built(spec: str, reducer: str, plan: Plan = PLAN) -> BlockEncoder:
    torch.manual_seed(1)
    encoder = encoders.build(spec, input_dim=D)
    encoder.place_reducers(lambda dim: reducers.build(reducer, dim=dim), plan.schedule)
    assert isinstance(encoder, BlockEncoder)
    return encoder.eval()


@pytest.mark.parametrize("spec", [SLIM, VIT])
@pytest.mark.parametrize("reducer", ["random", "cropr:order=score"])
def test_the_last_block_sees_every_patch_as_its_last_block_left_it(spec: str, reducer: str) -> None:
    """Against the blocks run by hand: each patch as it was when it was dropped, or as block 2 made it."""
    encoder, one = built(spec, reducer), slide()
    assert list(encoder.reducers) == ["1", "2"]
    with torch.inference_mode():
        pack = encoder.embed([one])
        patches = pack.x[1:].clone()
        for block in range(3):
            if block:
                ((cls_token, tokens),) = pack.slides()
                keep = PLAN.schedule.counts(N, 3, 0.7)[block]
                around = Context(
                    tokens,
                    cls_token,
                    block,
                    seed_of(3, one.id, block, 0),
                    trace=True,
                    ahead=encoder.attention(block),
                )
                pack = Pack.join([(cls_token, encoder.reducers[str(block)](tokens, keep, around).tokens)])
            pack = replace(pack, x=encoder.block(block, pack))
            patches[pack.origin[1:]] = pack.x[1:]
        whole = Pack.join([(pack.x[0], one.tokens.replace_x(patches))])
        expected = encoder.pool(replace(whole, x=encoder.block(3, whole)))
        encoded = encoder([one], PLAN)
    assert encoded.counts == ((N, *(PLAN.schedule.counts(N, 3, 0.7)[block] for block in (1, 2)), N),)
    assert torch.allclose(encoded.embedding, expected, atol=1e-5)


@pytest.mark.parametrize("reducer", ["tome", "evit"])
def test_members_of_a_token_are_in_it_and_do_not_come_back(reducer: str) -> None:
    encoded = built(SLIM, reducer)([slide()], PLAN)
    assert encoded.counts[0][3] == encoded.counts[0][2] == PLAN.schedule.counts(N, 3, 0.7)[2]


def test_nothing_changes_where_nothing_is_dropped() -> None:
    unpruned = replace(PLAN, rate=0.0)
    plain = built(SLIM.replace(",fusion=true", ""), "random", unpruned)
    assert torch.equal(
        built(SLIM, "random", unpruned)([slide()], unpruned).embedding, plain([slide()], unpruned).embedding
    )


def test_slides_of_a_batch_do_not_mix() -> None:
    encoder, slides = built(SLIM, "cropr"), [slide(60), slide(33, 1), slide(1, 2)]
    with torch.inference_mode():
        together = encoder(slides, PLAN)
        for number, one in enumerate(slides):
            alone = encoder([one], PLAN)
            assert alone.counts[0] == together.counts[number]
            assert torch.allclose(alone.embedding[0], together.embedding[number], atol=1e-5)


def test_its_flops_agree_three_ways() -> None:
    encoder = built(SLIM, "cropr")
    ways = three_ways(Pass(encoder, PLAN, "fp32"), slide())
    assert ways.stated is not None
    last, first = (
        [one.flops for one in ways.stated.operations if one.part == part] for part in ("blocks.3", "blocks.0")
    )
    assert last == first and sum(first) > 0


def test_a_patch_that_came_back_is_in_the_reach_of_cls_where_gradients_say_so() -> None:
    """On a slide longer than the longest segment; what was dropped at block 1 knows less than at block 2."""
    encoder, one = built(SLIM.replace("1+2", "1+4"), "random"), slide(300)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
    x = one.tokens.x.clone().requires_grad_()
    encoded = encoder([replace(one, tokens=one.tokens.replace_x(x))], PLAN)
    encoded.embedding.square().sum().backward()
    assert x.grad is not None and encoded.traces is not None
    shares = reach(encoder, encoded.traces[0], encoded.counts[0])
    assert shares is not None
    assert shares[-1] == pytest.approx(float(x.grad.abs().sum(1).gt(0).float().mean()))
    assert shares[0] < shares[-1] < 1


def test_gradients_reach_what_was_dropped() -> None:
    encoder = built(
        "slim:width=24,depth=2,heads=2,mlp=40,segments=128,ratios=1,fusion=true", "random"
    ).train()
    x = slide().tokens.x.clone().requires_grad_()
    encoder([replace(slide(), tokens=slide().tokens.replace_x(x))], PLAN).embedding.square().sum().backward()
    assert x.grad is not None and bool((x.grad.abs().sum(1) > 0).all())


def test_one_block_cannot_be_fused() -> None:
    with pytest.raises(UsageError, match="wants two blocks or more, and there are 1"):
        encoders.build("slim:depth=1,fusion=true", input_dim=768)


def test_a_schedule_counts_its_blocks_without_the_last() -> None:
    encoder = built(SLIM, "random")
    assert encoder.budget(1000, PLAN) == Geometric().counts(1000, 3, 0.7)
    assert math.isclose(encoder.budget(1000, PLAN)[2], 300, abs_tol=2)


def test_what_comes_back_was_not_kept() -> None:
    """Fusion puts all patches into the last block: the share that was kept is what the reducers left."""
    features = {f"s{n}": slide(n, n).tokens for n in (20, 33)}
    patches = {name: Patches(tokens.x.numpy(), tokens.coords.numpy()) for name, tokens in features.items()}
    table = tuple(Slide(name, name, "test", len(tokens)) for name, tokens in features.items())
    cohort = InMemoryCohort("made", table, (), D, "report", "0", patches)
    load = SlideLoader(cohort, torch.device("cpu"))
    evidence = CellEvidence(
        cohort, built(SLIM, "random"), None, None, load, PLAN, "fp32", lambda phase, done, total: None
    )
    left = np.mean([PLAN.schedule.counts(n, 3, 0.7)[2] / n for n in (20, 33)])
    kept = _kept(evidence.embeddings("test"), evidence.encoder.kept_entry)
    assert kept.tokens_per_block[-1] == 26.5 and kept.single_token == 0
    assert kept.share == pytest.approx(left)
    costs = {metric.name: metric.value for metric in Efficiency(slides=1, repeats=1).run(evidence).metrics}
    assert costs["kept_share"] == pytest.approx(left)
    (error,) = Reconstruction().run(evidence).metrics
    assert error.note == "what last-layer fusion brings back counts as dropped"
