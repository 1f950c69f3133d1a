"""What every encoder promises, and `slim` and `mean-pool` against slow arithmetic.

A new encoder is added to SMALL; the first test says so when it is missing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import slimbench.encoders as room
from slimbench.block_encoder import BlockEncoder, Pack
from slimbench.encoder import Encoded, Plan, SlideEncoder, SlideInput
from slimbench.encoders.rope import rotate, rotations
from slimbench.errors import PluginError, UsageError
from slimbench.measure.passes import Pass
from slimbench.measure.traced import three_ways
from slimbench.reducer import Context, Merger, Reducer
from slimbench.registry import encoders, reducers
from slimbench.schedule import Geometric, Input, Linear, Once
from slimbench.tokens import Tokens
from slimbench.trace import STAYED

D = 20
SMALL = {
    "gigapath": "gigapath:width=24,depth=3,heads=3,mlp=40,segments=8+32,ratios=1+2",
    "mean-pool": "mean-pool",
    "slim": "slim:width=24,depth=3,heads=3,mlp=40,segments=8+32,ratios=1+2",
    "slim-base": "slim:depth=2,segments=16+64,ratios=1+2",
    "slim-tiny": "slim-tiny",
    "torchscale-longnet": "torchscale-longnet:width=24,depth=3,heads=3,mlp=40,segments=8+32,ratios=1+2",
    "vit": "vit:width=24,depth=3,heads=3",
    "vit-tiny": "vit-tiny",
}
DENSE = {
    "gigapath": "gigapath:width=24,depth=3,heads=3,mlp=40,segments=512,ratios=1",
    "slim": "slim:width=24,depth=3,heads=3,mlp=40,segments=512,ratios=1",
    "torchscale-longnet": "torchscale-longnet:width=24,depth=3,heads=3,mlp=40,segments=512,ratios=1",
    "vit": SMALL["vit"],
}
"""Every query sees every key once, so that two equal keys and one that counts twice are the same."""
BLOCKS = sorted(set(SMALL) - {"mean-pool"})
TRAINED = sorted(set(BLOCKS) - {"gigapath"})

Build = Callable[..., SlideEncoder]


@pytest.fixture
def build(published_checkpoint: Callable[..., Path]) -> Build:
    """An encoder from its spec, with random weights everywhere, also where training would start from 0 or 1."""

    def built(spec: str, reducer: str | None = None, plan: Plan | None = None) -> SlideEncoder:
        torch.manual_seed(1)
        if spec.startswith("gigapath"):
            spec += f",checkpoint={published_checkpoint(features=D, width=24, depth=3, mlp=40)}"
        try:
            encoder = encoders.build(spec, input_dim=D)
        except PluginError as error:
            pytest.skip(str(error))
        assert isinstance(encoder, SlideEncoder)
        with torch.no_grad():
            for parameter in encoder.parameters():
                scale = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.2
                parameter += scale * torch.randn_like(parameter)
        if reducer is not None:
            encoder.place_reducers(lambda dim: reducers.build(reducer, dim=dim), (plan or Plan()).schedule)
        return encoder.eval()

    return built


def slide(n: int, seed: int = 0, name: str = "") -> SlideInput:
    draw = torch.Generator().manual_seed(seed)
    side = math.isqrt(n) + 1
    coords = torch.stack((torch.arange(n) % side, torch.arange(n) // side), dim=1)
    return SlideInput(name or f"slide-{n}-{seed}", Tokens.of(torch.randn(n, D, generator=draw), coords))


SLIDES = [slide(n, seed) for seed, n in enumerate((37, 1, 70, 8, 33))]


def close(one: Tensor, two: Tensor, atol: float = 2e-5) -> bool:
    return torch.allclose(one, two, rtol=1e-4, atol=atol)


def encode(encoder: SlideEncoder, slides: list[SlideInput], plan: Plan | None = None) -> Encoded:
    with torch.no_grad():
        encoded = encoder(slides, plan or Plan())
    assert isinstance(encoded, Encoded)
    return encoded


# --- every encoder -------------------------------------------------------------------------------


def test_every_file_of_the_room_is_a_registered_encoder_or_a_kernel() -> None:
    files = {path.stem for path in Path(room.__file__).parent.glob("*.py")} - {"__init__"}
    registered = {target.split(":")[0].rpartition(".")[2] for target in room.BUILT_INS.values()}
    assert files == registered | set(room.KERNELS)


def test_every_registered_encoder_is_in_this_suite() -> None:
    assert set(SMALL) == set(room.BUILT_INS) - set(room.WITHOUT_PATCHES)


@pytest.mark.parametrize("name", SMALL)
def test_embeddings_are_finite_fp32_rows_of_the_stated_width(name: str, build: Build) -> None:
    encoder = build(SMALL[name])
    embedding = encode(encoder, SLIDES).embedding
    assert embedding.shape == (len(SLIDES), encoder.dim)
    assert embedding.dtype == torch.float32
    assert embedding.isfinite().all()
    assert torch.pdist(embedding).min() > 0.01  # different slides, different embeddings


@pytest.mark.parametrize("reducer", ["random", "tome", "cropr"])
@pytest.mark.parametrize("name", SMALL)
def test_a_packed_batch_is_its_slides_one_by_one(name: str, reducer: str, build: Build) -> None:
    if name == "mean-pool" and reducer == "tome":
        pytest.skip("ToMe compares keys, and mean-pool has none")
    plan = Plan(rate=0.6, seed=3)
    encoder = build(SMALL[name], reducer)
    together = encode(encoder, SLIDES, plan)
    alone = [encode(encoder, [one], plan) for one in SLIDES]
    assert close(together.embedding, torch.cat([one.embedding for one in alone]))
    assert together.counts == tuple(one.counts[0] for one in alone)


@pytest.mark.parametrize("name", SMALL)
def test_inference_in_place_is_the_training_path(name: str, build: Build) -> None:
    plan = Plan(rate=0.6, seed=3)
    encoder = build(SMALL[name], "random")
    assert close(encoder(SLIDES, plan).embedding, encode(encoder, SLIDES, plan).embedding)


@pytest.mark.parametrize("name", SMALL)
def test_encoding_leaves_the_features_as_they_were(name: str, build: Build) -> None:
    width = 48 if name.endswith("tiny") else D
    one = slide(37)
    if width != D:  # no projection: nothing stands between the cohort's features and the first block
        one = replace(one, tokens=one.tokens.replace_x(torch.randn(37, width)))
    encoder = encoders.build(SMALL[name], input_dim=width) if width != D else build(SMALL[name])
    before = one.tokens.x.clone()
    encode(encoder, [one])
    assert torch.equal(one.tokens.x, before)


@pytest.mark.parametrize("reducer", ["random", "cropr"])
@pytest.mark.parametrize("name", TRAINED)
def test_checkpointed_is_not_checkpointed(name: str, reducer: str, build: Build) -> None:
    plan, results = Plan(rate=0.6, seed=3), []
    for checkpointing in (False, True):
        encoder = build(SMALL[name], reducer).train()
        assert isinstance(encoder, BlockEncoder)
        encoder.checkpointing = checkpointing
        encoded = encoder(SLIDES, plan)
        total = encoded.embedding.square().mean() + sum(s.square().mean() for s in encoded.summaries.values())
        total.backward()
        results.append((encoded.embedding, [p.grad for p in encoder.parameters()]))
    (one, one_grads), (two, two_grads) = results
    assert torch.equal(one, two)
    for first, second in zip(one_grads, two_grads, strict=True):
        assert torch.allclose(first, second, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", TRAINED)
def test_gradients_reach_every_parameter(name: str, build: Build) -> None:
    encoder = build(SMALL[name], "cropr").train()
    encoded = encoder(SLIDES, Plan(rate=0.6))
    probe = torch.randn(encoder.dim, generator=torch.Generator().manual_seed(2))
    total = (encoded.embedding @ probe).sum() + sum((s @ probe).sum() for s in encoded.summaries.values())
    total.backward()
    without = [name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


@pytest.mark.parametrize("name", BLOCKS)
def test_reducing_the_input_is_encoding_the_kept_patches_alone(name: str, build: Build) -> None:
    """[CLS] is there whatever goes: also when one patch is left."""
    for rate in (0.5, 0.99):
        plan = Plan(Input(), rate, seed=4, trace=True)
        encoder = build(SMALL[name], "random", plan)
        encoded = encode(encoder, SLIDES, plan)
        assert encoded.traces is not None
        kept = [
            replace(one, tokens=one.tokens.take(trace.kept().nonzero().squeeze(1)))
            for one, trace in zip(SLIDES, encoded.traces, strict=True)
        ]
        assert [len(one.tokens) for one in kept] == [count[-1] for count in encoded.counts]
        for trace in encoded.traces:
            assert torch.equal(trace.left() == STAYED, trace.kept())
        assert close(encoded.embedding, encode(build(SMALL[name]), kept).embedding)


@pytest.mark.parametrize("reducer", ["random", "tome", "cropr"])
@pytest.mark.parametrize("name", SMALL)
def test_nothing_changes_at_rate_zero(name: str, reducer: str, build: Build) -> None:
    plain = encode(build(SMALL[name]), SLIDES).embedding
    assert torch.equal(encode(build(SMALL[name], reducer), SLIDES, Plan(rate=0.0)).embedding, plain)


@pytest.mark.parametrize("schedule", [Geometric(), Input(), Linear(), Once(after=2), Geometric(least=8)])
@pytest.mark.parametrize("name", BLOCKS)
def test_each_block_sees_what_the_schedule_says(name: str, schedule: Geometric, build: Build) -> None:
    if isinstance(schedule, Once) and name == "slim-base":
        schedule = Once(after=1)  # its small variant has two blocks
    plan = Plan(schedule, rate=0.7)
    encoder = build(SMALL[name], "random", plan)
    assert isinstance(encoder, BlockEncoder)
    for one, counts in zip(SLIDES, encode(encoder, SLIDES, plan).counts, strict=True):
        wanted = schedule.counts(len(one.tokens), encoder.depth, plan.rate)
        current, expected = len(one.tokens), []
        for block in range(encoder.depth):
            current = wanted.get(block, current)
            expected.append(current)
        assert counts == tuple(expected)


@pytest.mark.parametrize("name", SMALL)
def test_bf16_autocast_is_close_to_fp32(name: str, build: Build) -> None:
    encoder = build(SMALL[name])
    exact = encode(encoder, SLIDES).embedding
    with torch.autocast("cpu", torch.bfloat16):
        rounded = encode(encoder, SLIDES).embedding
    assert rounded.dtype == torch.float32
    assert torch.cosine_similarity(exact, rounded).min() > 0.999
    assert name == "mean-pool" or not torch.equal(exact, rounded)


class Twins(Merger):
    """Merges rows 0 and 1, and nothing else."""

    def assign(self, tokens: Tokens, keep: int, context: Context) -> tuple[Tensor, None]:
        return (torch.arange(len(tokens)) - 1).clamp(min=0), None


def place(encoder: SlideEncoder, reducer: type[Reducer]) -> SlideEncoder:
    encoder.place_reducers(reducer, Input())
    return encoder.eval()


@pytest.mark.parametrize("name", DENSE)
def test_a_token_of_size_two_is_two_equal_tokens(name: str, build: Build) -> None:
    twice = slide(30)
    for field in (twice.tokens.x, twice.tokens.coords):
        field[1] = field[0]
    plan = Plan(Input(), rate=0.02)  # 29 of 30
    plain = encode(build(DENSE[name]), [twice]).embedding
    merged = encode(place(build(DENSE[name]), Twins), [twice], plan)
    assert merged.counts[0][0] == 29
    assert close(merged.embedding, plain)
    unweighted = encode(place(build(f"{DENSE[name]},proportional=false"), Twins), [twice], plan)
    assert not close(unweighted.embedding, plain, atol=1e-3)


@pytest.mark.parametrize("name", BLOCKS)
def test_reducers_see_the_keys_of_the_block_ahead(name: str, build: Build) -> None:
    encoder = build(SMALL[name])
    assert isinstance(encoder, BlockEncoder)
    ahead = encoder.attention(1)
    assert ahead is not None
    x = torch.randn(7, encoder.dim)
    keys = ahead.keys(x)
    assert keys.shape == ahead.queries(x).shape == ahead.values(x).shape == (7, keys.shape[1], keys.shape[2])
    assert keys.shape[1] * keys.shape[2] == encoder.dim
    assert close(ahead.mean_keys(x), keys.mean(1))
    assert not close(keys, ahead.queries(x)) and not close(keys, ahead.values(x))


@pytest.mark.parametrize("reducer", ["random", "tome"])
@pytest.mark.parametrize("name", BLOCKS)
def test_stated_flops_are_those_of_a_run(name: str, reducer: str, build: Build) -> None:
    """Stated by the encoder, counted by FlopCounterMode and by fvcore: to the unit, block by block."""
    plan = Plan(rate=0.6, seed=3)
    ways = three_ways(Pass(build(SMALL[name], reducer), plan, "fp32"), slide(70))
    assert ways.stated is not None
    assert ways.stated.total == ways.torch.total == ways.fvcore.total > 0
    parts = [{p: f for p, f in found.parts.items() if f} for found in (ways.stated, ways.torch, ways.fvcore)]
    assert parts[0] == parts[1] == parts[2]


# --- mean-pool -----------------------------------------------------------------------------------


def test_mean_pool_is_the_mean(build: Build) -> None:
    expected = torch.stack([one.tokens.x.double().mean(0) for one in SLIDES]).float()
    assert torch.allclose(encode(build("mean-pool"), SLIDES).embedding, expected, atol=1e-6)


def test_mean_pool_weighs_merged_tokens_by_their_patches(build: Build) -> None:
    merged = encode(place(build("mean-pool"), Twins), SLIDES[:1], Plan(Input(), rate=0.02))
    assert torch.allclose(merged.embedding[0], SLIDES[0].tokens.x.mean(0), atol=1e-6)


def test_mean_pool_has_nothing_to_train(build: Build) -> None:
    assert list(build("mean-pool").parameters()) == []


# --- slim ----------------------------------------------------------------------------------------


def attention_in_float64(
    q: Tensor, k: Tensor, v: Tensor, segments: tuple[int, ...], ratios: tuple[int, ...], log_size: Tensor
) -> Tensor:
    """q, k, v [L, H, d] -> [L, H, d]: one softmax in which a key counts once for each branch that shows it."""
    length, heads, width = q.shape
    position = torch.arange(length)
    out = torch.empty_like(q)
    for head in range(heads):
        seen = torch.zeros(length, length, dtype=torch.float64)
        for segment, ratio in zip(segments, ratios, strict=True):
            segment = min(segment, length)
            mine = position % segment % ratio == head // math.ceil(heads / ratio)
            seen += mine[:, None] & mine & (position[:, None] // segment == position // segment)
        weight = seen * (q[:, head] @ k[:, head].T / width**0.5 + log_size).exp()
        out[:, head] = weight @ v[:, head] / weight.sum(1, keepdim=True)
    return out


def slim_in_float64(
    encoder: SlideEncoder,
    tokens: Tokens,
    segments: tuple[int, ...],
    ratios: tuple[int, ...],
    base: float,
    heads: int,
) -> Tensor:
    """SLIM's encoder from the paper's description, one slide, nothing fused, everything in float64."""
    w = {name: tensor.double() for name, tensor in encoder.state_dict().items()}

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(1, keepdim=True)
        return (
            centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt() * w[f"{name}.weight"]
            + w[f"{name}.bias"]
        )

    def turn(x: Tensor) -> Tensor:
        turned, pairs = x.clone(), x.shape[-1] // 2
        for pair in range(pairs):
            axis, step = divmod(pair, pairs // 2)
            angle = (coords[:, axis] * base ** (-step / (pairs // 2)))[:, None]
            a, b = x[..., 2 * pair], x[..., 2 * pair + 1]
            turned[..., 2 * pair] = a * angle.cos() - b * angle.sin()
            turned[..., 2 * pair + 1] = a * angle.sin() + b * angle.cos()
        return turned

    coords = torch.cat((torch.zeros(1, 2), tokens.coords)).double()
    log_size = torch.cat((torch.zeros(1), tokens.size.log())).double()
    x = torch.cat((w["cls"][None], linear(tokens.x.double(), "project")))
    for block in range(1 + max(int(name.split(".")[1]) for name in w if name.startswith("blocks"))):
        at = f"blocks.{block}."
        q, k, v = (
            part.unflatten(1, (heads, -1)) for part in linear(norm(x, at + "norm1"), at + "qkv").chunk(3, 1)
        )
        mixed = attention_in_float64(turn(q), turn(k), v, segments, ratios, log_size)
        x = x + linear(mixed.flatten(1), at + "out")
        hidden = linear(norm(x, at + "norm2"), at + "fc1")
        x = x + linear(hidden * (1 + torch.erf(hidden / 2**0.5)) / 2, at + "fc2")
    return norm(x[:1], "norm")[0]


@pytest.mark.parametrize(
    ("segments", "ratios", "heads"), [((8, 32), (1, 2), 3), ((64,), (1,), 2), ((4, 8, 64), (1, 4, 8), 6)]
)
def test_slim_is_longnet_with_rotary_positions(
    segments: tuple[int, ...], ratios: tuple[int, ...], heads: int, build: Build
) -> None:
    branches = f"segments={'+'.join(map(str, segments))},ratios={'+'.join(map(str, ratios))}"
    encoder = build(f"slim:width=24,depth=3,heads={heads},mlp=40,rope_base=50,{branches}")
    expected = [slim_in_float64(encoder, one.tokens, segments, ratios, 50.0, heads) for one in SLIDES]
    assert close(encode(encoder, SLIDES).embedding, torch.stack(expected).float())


def test_slim_weighs_merged_tokens_by_their_patches(build: Build) -> None:
    encoder = place(build(SMALL["slim"]), Twins)
    one = slide(37)
    merged = one.tokens.merge((torch.arange(37) - 1).clamp(min=0), 36)
    expected = slim_in_float64(encoder, merged, (8, 32), (1, 2), 10_000.0, 3)
    assert close(encode(encoder, [one], Plan(Input(), rate=0.02)).embedding[0], expected.float())


def test_rotary_attention_depends_on_distances_only() -> None:
    draw = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 9, 3, 16, generator=draw)
    coords = torch.randint(0, 300, (9, 2), generator=draw).float()

    def logits(coords: Tensor) -> Tensor:
        by = rotations(coords, 16, 10_000.0)
        return torch.einsum("qhd,khd->hqk", rotate(q, by), rotate(k, by))

    assert torch.allclose(logits(coords), logits(coords + torch.tensor([250.0, 40.0])), atol=1e-3)
    assert not torch.allclose(logits(coords), logits(coords * 2), atol=0.1)
    assert torch.equal(rotate(q, rotations(torch.zeros(9, 2), 16, 10_000.0)), q)  # [CLS] stands at (0, 0)


def test_cls_rows_are_the_first_of_each_slide() -> None:
    pack = Pack.join([(torch.full((D,), float(i)), one.tokens) for i, one in enumerate(SLIDES)])
    assert pack.x[pack.cls_rows()][:, 0].tolist() == [0, 1, 2, 3, 4]


def test_slim_base_is_the_papers_size() -> None:
    encoder = encoders.build("slim-base", input_dim=768)
    blocks = sum(parameter.numel() for parameter in encoder.blocks.parameters())
    assert blocks == 6 * 7_087_872 == 42_527_232  # 42.5 M
    encoder.place_reducers(lambda dim: reducers.build("cropr:keys=identity", dim=dim), Geometric())
    cropr = sum(parameter.numel() for parameter in encoder.reducers.parameters())
    assert len(encoder.reducers) == 5
    assert blocks + cropr == 66_150_912  # the paper's "about 66 M"
    outside = 768 + 2 * 768  # [CLS] and the last norm; features of the encoder's width are not projected
    assert sum(parameter.numel() for parameter in encoder.parameters()) == blocks + cropr + outside


@pytest.mark.parametrize("name", ["slim", "vit"])
def test_a_width_that_rotary_positions_cannot_share_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="multiple of 4"):
        encoders.build(f"{name}:width=30,heads=5", input_dim=D)
