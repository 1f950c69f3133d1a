"""`gigapath` against Prov-GigaPath's semantics, written down slowly: one slide, float64, padding as real zeros."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
import torch
from torch import Tensor

from slimbench.encoder import Plan, SlideInput
from slimbench.encoders.gigapath import GigaPath, published_names
from slimbench.encoders.sincos import GridPositions
from slimbench.errors import CheckpointError, CohortError, UsageError
from slimbench.reducer import Context, Merger
from slimbench.registry import encoders, reducers
from slimbench.schedule import Geometric, Input
from slimbench.tokens import Tokens

SMALL = {"width": 24, "depth": 3, "mlp": 40}
FEATURES = 20
BRANCHES = {"segments": (8, 12, 64), "ratios": (1, 4, 8)}

Write = Callable[..., Path]


@pytest.fixture
def checkpoint(published_checkpoint: Write) -> Path:
    return published_checkpoint(features=FEATURES, **SMALL)


def small(checkpoint: Path, **changed: object) -> GigaPath:
    given = {**SMALL, "heads": 3, **BRANCHES, "checkpoint": str(checkpoint), **changed}
    return GigaPath(FEATURES, **given).eval()  # type: ignore[arg-type]


def slide(n: int, features: int = FEATURES, seed: int = 0) -> SlideInput:
    draw = torch.Generator().manual_seed(seed)
    coords = torch.randint(0, 900, (n, 2), generator=draw) + torch.rand(n, 2, generator=draw)
    return SlideInput(f"slide-{n}", Tokens.of(torch.randn(n, features, generator=draw), coords))


def encode(encoder: GigaPath, slides: list[SlideInput], plan: Plan | None = None) -> Tensor:
    with torch.no_grad():
        return encoder(slides, plan or Plan()).embedding


# --- the semantics, in float64 -------------------------------------------------------------------


def branch(q: Tensor, k: Tensor, v: Tensor, segment: int, ratio: int) -> tuple[Tensor, Tensor]:
    """q, k, v [L, H, d] -> output [L, H, d] and log-sum-exp [L, H] of one branch, zero keys and all."""
    length, heads, width = q.shape
    segment = min(segment, length)
    out, lse = torch.zeros_like(q), torch.full((length, heads), -1e8, dtype=q.dtype)
    row = math.ceil(segment / ratio) * ratio
    for start in range(0, length, segment):
        real = min(segment, length - start)
        padded = torch.zeros(3, row, heads, width, dtype=q.dtype)
        padded[:, :real] = torch.stack((q, k, v))[:, start : start + real]
        for head in range(heads):
            places = torch.arange(head // math.ceil(heads / ratio), row, ratio)
            some_q, some_k, some_v = padded[:, places, head]
            logits = some_q @ some_k.T / width**0.5
            answer = logits.softmax(1) @ some_v
            for place, found, total in zip(places.tolist(), answer, logits.logsumexp(1), strict=True):
                if place < real:
                    out[start + place, head], lse[start + place, head] = found, total
    return out, lse


def published(
    checkpoint: Path, one: SlideInput, heads: int, segments: tuple[int, ...], ratios: tuple[int, ...]
) -> dict[str, Tensor]:
    """What the published code returns for a slide: {"plain-cls", "plain-mean", "0-cls", ..., "L-mean"}."""
    state = torch.load(checkpoint, weights_only=True)["model"]
    w = {name: tensor.double() for name, tensor in state.items()}
    width, eps = w["norm.weight"].shape[0], 1e-5

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(x: Tensor, name: str, eps: float = eps) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()
        return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]

    def position(x: int, y: int) -> Tensor:
        frequencies = [10_000 ** (-i / (width // 4)) for i in range(width // 4)]
        row = [turn(at * f) for at in (y, x) for turn in (math.sin, math.cos) for f in frequencies]
        return torch.tensor(row, dtype=torch.float64)

    x = linear(one.tokens.x.double(), "patch_embed.proj")
    x = x + torch.stack([position(int(a), int(b)) for a, b in one.tokens.coords.floor().tolist()])
    x = torch.cat((w["cls_token"][0], x))
    states = [x]
    for layer in range(sum(name.endswith("ffn.fc1.bias") for name in w)):
        at = f"encoder.layers.{layer}."
        y = norm(x, at + "self_attn_layer_norm")
        q, k, v = (linear(y, f"{at}self_attn.{p}_proj").unflatten(1, (heads, -1)) for p in "qkv")
        outs, lses = zip(*(branch(q, k, v, s, r) for s, r in zip(segments, ratios, strict=True)), strict=True)
        weights = torch.stack(lses).softmax(0).unsqueeze(-1)
        mixed = (weights * torch.stack(outs)).sum(0).flatten(1)
        x = x + linear(norm(mixed, at + "self_attn.inner_attn_ln"), at + "self_attn.out_proj")
        hidden = linear(norm(x, at + "final_layer_norm"), at + "ffn.fc1")
        hidden = hidden * (1 + torch.erf(hidden / 2**0.5)) / 2
        x = x + linear(norm(hidden, at + "ffn.ffn_layernorm"), at + "ffn.fc2")
        states.append(x)
    found = {}
    for name, y in [*enumerate(states), ("plain", norm(x, "encoder.layer_norm"))]:
        found[f"{name}-cls"] = norm(y, "norm", 1e-6)[0]
        found[f"{name}-mean"] = norm(y[1:].mean(0), "norm", 1e-6)
    return found


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("layer", [None, 0, 2, 3])
def test_gigapath_is_the_published_encoder(checkpoint: Path, layer: int | None, pooling: str) -> None:
    encoder = small(checkpoint, layer=layer, pooling=pooling)
    slides = [slide(n) for n in (1, 7, 53, 100)]
    name = f"{'plain' if layer is None else layer}-{pooling}"
    expected = torch.stack([published(checkpoint, one, 3, *BRANCHES.values())[name] for one in slides])
    assert torch.allclose(encode(encoder, slides), expected.float(), rtol=1e-4, atol=1e-5)


def test_the_two_last_layers_differ_by_a_norm(checkpoint: Path) -> None:
    plain, listed = (encode(small(checkpoint, layer=layer), [slide(30)]) for layer in (None, 3))
    assert (plain - listed).abs().max() > 0.1


def test_an_inner_layer_runs_no_block_behind_it(checkpoint: Path) -> None:
    encoder = small(checkpoint, layer=2)
    assert encoder.depth == len(encoder.blocks) == 2
    assert encoder([slide(30)], Plan()).counts == ((30, 30),)


@pytest.mark.slow
def test_the_full_size_checkpoint_is_read(published_checkpoint: Write) -> None:
    path = published_checkpoint()
    encoder = GigaPath(checkpoint=str(path)).eval()
    assert sum(parameter.numel() for parameter in encoder.parameters()) == 86_330_880
    assert len(torch.load(path, weights_only=True, mmap=True)["model"]) == 247
    assert sum(len(published_names(own)) for own in encoder.state_dict()) == 247
    one = slide(150, features=1536)
    expected = published(path, one, 16, encoder.segments, encoder.ratios)["plain-cls"]
    assert torch.allclose(encode(encoder, [one])[0], expected.float(), rtol=1e-4, atol=1e-5)


# --- positions -----------------------------------------------------------------------------------


def test_positions_are_the_rows_of_the_published_table() -> None:
    side, width = 7, 12
    table = torch.zeros(side * side, width, dtype=torch.float64)
    frequencies = 10_000.0 ** (-torch.arange(3, dtype=torch.float64) / 3)
    for row in range(side * side):
        x, y = divmod(row, side)
        table[row] = torch.cat([turn(at * frequencies) for at in (y, x) for turn in (torch.sin, torch.cos)])
    coords = torch.tensor([[0.0, 0.0], [3.9, 6.0], [6.0, 2.5], [2.0, 9.0]])  # y = 9 runs on into x = 3
    rows = [0, 3 * side + 6, 6 * side + 2, 2 * side + 9]
    assert torch.allclose(GridPositions(width, side)(coords, "slide").double(), table[rows], atol=1e-7)


def test_a_patch_outside_of_the_grid_is_named(checkpoint: Path) -> None:
    far = slide(5)
    for x in (1000.0, -1.0):
        far.tokens.coords[2, 0] = x
        with pytest.raises(UsageError, match="slide slide-5: grid cells run from"):
            encode(small(checkpoint), [slide(3), far])


def test_step_spreads_patches_over_cells(checkpoint: Path) -> None:
    one = slide(30)
    near = one.tokens.coords / 2
    halved = SlideInput(one.id, Tokens.of(one.tokens.x, near))
    assert torch.equal(encode(small(checkpoint, step=2.0), [halved]), encode(small(checkpoint), [one]))
    assert not torch.equal(encode(small(checkpoint), [halved]), encode(small(checkpoint), [one]))


def test_without_a_step_each_slides_own_patch_size_decides(checkpoint: Path) -> None:
    """The published code divides level-0 pixels by 256."""
    one, other = slide(30), slide(20)
    one = replace(one, tokens=Tokens.of(one.tokens.x, one.tokens.coords / 2))
    sized = [replace(one, patch_size=512.0), replace(other, patch_size=256.0)]
    own = small(checkpoint, step=None)
    assert torch.equal(encode(own, sized[:1]), encode(small(checkpoint, step=2.0), [one]))
    assert torch.equal(encode(own, sized[1:]), encode(small(checkpoint), [other]))
    assert torch.allclose(encode(own, sized)[:1], encode(own, sized[:1]), atol=1e-5)
    pixels = torch.tensor([[7936, 0], [0, 7935], [99_840, 255]])  # 31, 30 and 390 cells of 256
    odd = SlideInput("odd", Tokens.of(torch.zeros(3, 1), (pixels.double() / 448).float()), patch_size=448.0)
    assert own._cells(odd).floor().tolist() == [[31, 0], [0, 30], [390, 0]]
    with pytest.raises(CohortError, match="slide slide-20: its features do not say how large a patch is"):
        encode(small(checkpoint, step=None), [sized[0], other])


# --- reducers ------------------------------------------------------------------------------------


def test_gigapath_is_never_trained() -> None:
    assert GigaPath.pretrained


@pytest.mark.parametrize("reducer", ["random", "tome"])
def test_reducers_work_between_its_blocks_without_training(checkpoint: Path, reducer: str) -> None:
    encoder = small(checkpoint)
    encoder.place_reducers(lambda dim: reducers.build(reducer, dim=dim), Geometric())
    slides, plan = [slide(53), slide(20)], Plan(rate=0.75)
    with torch.no_grad():
        encoded = encoder(slides, plan)
    assert encoded.counts == ((53, 26, 13), (20, 10, 5))
    assert encoded.embedding.isfinite().all()
    assert not torch.allclose(encoded.embedding, encode(small(checkpoint), slides), atol=1e-3)


class Twins(Merger):
    """Merges rows 0 and 1, and nothing else."""

    def assign(self, tokens: Tokens, keep: int, context: Context) -> tuple[Tensor, None]:
        return (torch.arange(len(tokens)) - 1).clamp(min=0), None


def test_the_mean_counts_patches_not_tokens(checkpoint: Path) -> None:
    twice = slide(30)
    twice.tokens.x[1], twice.tokens.coords[1] = twice.tokens.x[0], twice.tokens.coords[0]
    dense = {"segments": (512,), "ratios": (1,), "pooling": "mean"}
    merging = small(checkpoint, **dense)
    merging.place_reducers(Twins, Input())
    merged = encode(merging.eval(), [twice], Plan(Input(), rate=0.02))
    assert torch.allclose(merged, encode(small(checkpoint, **dense), [twice]), atol=1e-5)


# --- checkpoints that are not one ----------------------------------------------------------------


def test_a_partial_checkpoint_names_what_is_missing(checkpoint: Path) -> None:
    state = torch.load(checkpoint, weights_only=True)["model"]
    del state["norm.bias"], state["encoder.layers.1.ffn.fc1.weight"]
    state["decoder.weight"] = torch.zeros(1)
    state["encoder.layers.2.self_attn.k_proj.bias"] = torch.zeros(5)
    torch.save({"model": state}, checkpoint)
    with pytest.raises(CheckpointError) as raised:
        small(checkpoint)
    text = str(raised.value)
    assert "does not hold the 67 tensors of this slide encoder" in text
    assert "2 missing: encoder.layers.1.ffn.fc1.weight, norm.bias" in text
    assert "1 unexpected: decoder.weight" in text
    assert "1 of another shape: encoder.layers.2.self_attn.k_proj.bias (5,) instead of (24,)" in text


def test_a_long_list_of_missing_tensors_is_cut(checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match=r"20 missing: (encoder[\w.]+, ){3}\.\.\.$"):
        small(checkpoint, depth=4)


def test_features_of_another_patch_encoder_are_refused(checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match=r"patch features 20 wide.*the cohort's are 768 wide"):
        encoders.build(f"gigapath:checkpoint={checkpoint},width=24,depth=3,heads=3,mlp=40", input_dim=768)


def test_files_of_other_kinds_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "slide_encoder.pth"
    path.write_text("not a checkpoint")
    with pytest.raises(CheckpointError, match="cannot be read as a PyTorch checkpoint"):
        small(path)
    torch.save({"state_dict": {}, "epoch": 3}, path)
    with pytest.raises(
        CheckpointError, match="holds keys state_dict, epoch, and no state dict under 'model'"
    ):
        small(path)
    torch.save([1], path)
    with pytest.raises(CheckpointError, match="holds a list"):
        small(path)


class Trap:
    """Unpickling it would make a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.folder),)


def test_a_checkpoint_cannot_run_code(tmp_path: Path) -> None:
    torch.save({"model": Trap(tmp_path / "trapped")}, tmp_path / "slide_encoder.pth")
    with pytest.raises(CheckpointError, match="cannot be read"):
        small(tmp_path)
    assert not (tmp_path / "trapped").exists()


def test_an_absent_checkpoint_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*absent\.pth"):
        small(tmp_path / "absent.pth")
    with pytest.raises(CheckpointError, match=r"not in this machine's Hugging Face cache; .*download=true"):
        small(Path("nobody/nothing"))


def test_a_downloaded_checkpoint_is_found_in_the_cache(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "hub" / "models--prov-gigapath--prov-gigapath"
    commit = "0" * 40
    (model / "snapshots" / commit).mkdir(parents=True)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(commit)
    checkpoint.rename(model / "snapshots" / commit / "slide_encoder.pth")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    assert encode(small(Path("prov-gigapath/prov-gigapath")), [slide(5)]).isfinite().all()


def test_only_download_asks_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def hub(*_: object, local_files_only: bool) -> str:
        asked.append(not local_files_only)
        raise OSError("401")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hub)
    with pytest.raises(CheckpointError, match="download=true"):
        small(Path("owner/name"))
    with pytest.raises(CheckpointError, match=r"ask for access at huggingface\.co/owner/name"):
        small(Path("owner/name"), download=True)
    assert asked == [False, True]


def test_a_layer_that_does_not_exist_is_refused(checkpoint: Path) -> None:
    with pytest.raises(UsageError, match="layer 4 of an encoder of 3 blocks"):
        small(checkpoint, layer=4)
