"""torchscale's blocks around our kernel: a second implementation that checks the first."""

from __future__ import annotations

import builtins
import importlib
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from slimbench.encoder import Plan, SlideEncoder, SlideInput
from slimbench.encoders.gigapath import GigaPath
from slimbench.errors import PluginError
from slimbench.registry import encoders, reducers
from slimbench.schedule import Geometric
from slimbench.tokens import Tokens

MODULE = "slimbench.encoders.torchscale_longnet"
SMALL = "width=24,depth=3,heads=3,mlp=40,segments=8+12+64,ratios=1+4+8"


def built(arguments: str = "", input_dim: int = 1536) -> SlideEncoder:
    pytest.importorskip("torchscale", reason="torchscale is not installed: docs/encoders.md has the line")
    torch.manual_seed(0)
    encoder = encoders.build(f"torchscale-longnet:{arguments}".rstrip(":"), input_dim=input_dim)
    assert isinstance(encoder, SlideEncoder)
    return encoder.eval()


def slide(n: int, features: int, seed: int = 0) -> SlideInput:
    draw = torch.Generator().manual_seed(seed)
    coords = torch.randint(0, 900, (n, 2), generator=draw).float()
    return SlideInput(f"slide-{n}", Tokens.of(torch.randn(n, features, generator=draw), coords))


def test_its_state_dict_is_the_published_one(published_checkpoint: Callable[..., Path]) -> None:
    path = published_checkpoint(features=20, width=24, depth=3, mlp=40)
    held = torch.load(path, weights_only=True)["model"]
    own = built(SMALL, input_dim=20).state_dict()
    assert {name: tensor.shape for name, tensor in own.items()} == {n: t.shape for n, t in held.items()}


def test_its_default_size_is_the_published_one() -> None:
    with torch.device("meta"):
        encoder = built()
    assert len(encoder.state_dict()) == 247
    assert sum(parameter.numel() for parameter in encoder.parameters()) == 86_330_880


@pytest.mark.parametrize("reducer", ["none", "random", "tome"])
def test_gigapath_and_torchscale_agree(published_checkpoint: Callable[..., Path], reducer: str) -> None:
    path = published_checkpoint(features=20, width=24, depth=3, mlp=40)
    ours = encoders.build(f"gigapath:checkpoint={path},{SMALL}", input_dim=20).eval()
    theirs = built(SMALL, input_dim=20)
    theirs.load_state_dict(torch.load(path, weights_only=True)["model"])
    slides, plan = [slide(n, 20) for n in (1, 7, 53, 100)], Plan(rate=0.6, seed=2)
    for encoder in (ours, theirs):
        encoder.place_reducers(lambda dim: reducers.build(reducer, dim=dim), Geometric())
    with torch.no_grad():
        one, two = ours.eval()(slides, plan), theirs.eval()(slides, plan)
    assert one.counts == two.counts
    assert torch.allclose(one.embedding, two.embedding, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_they_agree_at_full_size(published_checkpoint: Callable[..., Path]) -> None:
    path = published_checkpoint()
    theirs = built()
    theirs.load_state_dict(torch.load(path, weights_only=True)["model"])
    ours, one = GigaPath(checkpoint=str(path)).eval(), slide(2500, 1536)
    with torch.no_grad():
        difference = ours([one], Plan()).embedding - theirs([one], Plan()).embedding
    assert difference.abs().max() < 1e-5


def test_gradients_agree(published_checkpoint: Callable[..., Path]) -> None:
    path = published_checkpoint(features=20, width=24, depth=3, mlp=40)
    ours = GigaPath(20, checkpoint=str(path), width=24, depth=3, heads=3, mlp=40)
    theirs = built("width=24,depth=3,heads=3,mlp=40", input_dim=20)
    theirs.load_state_dict(torch.load(path, weights_only=True)["model"])
    grads = []
    for encoder in (ours, theirs):
        one = slide(53, 20)
        one.tokens.x.requires_grad_()
        encoder([one], Plan()).embedding.square().sum().backward()
        grads.append(one.tokens.x.grad)
    assert torch.allclose(*grads, rtol=1e-4, atol=1e-6)
    assert grads[0].abs().max() > 1e-3


def test_without_torchscale_one_line_says_two_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *rest: object, **more: object) -> object:
        if name.startswith("torchscale"):
            raise ModuleNotFoundError("No module named 'torchscale'")
        return real(name, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(PluginError) as raised:
        encoders.build("torchscale-longnet", input_dim=20)
    text = str(raised.value)
    assert "pip install 'slimbench[torchscale]'" in text
    assert "pip install --no-deps torchscale==0.3.0 fairscale==0.4.0" in text
    assert "\n" not in text
    monkeypatch.undo()
    assert importlib.util.find_spec(MODULE) is not None
