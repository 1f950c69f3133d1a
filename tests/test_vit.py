"""`vit` against timm's own forward pass and against slow dense attention."""

from __future__ import annotations

import pytest
import torch
from timm.models.vision_transformer import Block

from slimbench.encoder import Plan, SlideInput
from slimbench.encoders.slim import Slim, slim_tiny
from slimbench.encoders.vit import ViT, dense_attention, vit_tiny
from slimbench.tokens import Tokens

D = 20


def slide(n: int, seed: int = 0, spread: float = 9.0) -> SlideInput:
    draw = torch.Generator().manual_seed(seed)
    coords = (spread * torch.rand(n, 2, generator=draw)).floor()
    return SlideInput(f"slide-{n}", Tokens.of(torch.randn(n, D, generator=draw), coords))


SLIDES = [slide(n, seed) for seed, n in enumerate((30, 1, 57))]


@pytest.fixture
def vit() -> ViT:
    torch.manual_seed(0)
    encoder = ViT(D, width=24, depth=3, heads=3, rope_base=50.0).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter += torch.randn_like(parameter) * (
                parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.2
            )
    return encoder


def test_without_positions_a_block_is_timms(vit: ViT) -> None:
    """Patches that all stand at (0, 0) are not rotated; then timm's own forward must give the same."""
    together = vit.embed([slide(n, spread=0.0) for n in (30, 1, 57)])
    for index, own in enumerate(vit.blocks):
        theirs = Block(24, 3, 4.0, qkv_bias=True, norm_layer=type(own.norm1))
        for norm in (theirs.norm1, theirs.norm2):
            norm.eps = 1e-6
        theirs.load_state_dict(own.state_dict())
        expected = torch.cat([theirs(x.unsqueeze(0))[0] for x in together.x.split(together.lengths)])
        assert torch.allclose(vit.block(index, together), expected, rtol=1e-4, atol=1e-5)


def test_it_is_slim_with_one_segment_as_long_as_the_slide(vit: ViT) -> None:
    """The same weights in slim's block, whose one branch of ratio 1 shows every key to every query."""
    names = {"attn.qkv": "qkv", "attn.proj": "out", "mlp.fc1": "fc1", "mlp.fc2": "fc2"}
    slim = Slim(D, width=24, depth=3, heads=3, mlp=96, segments=(512,), ratios=(1,), rope_base=50.0).eval()
    for norm in (module for module in slim.modules() if isinstance(module, torch.nn.LayerNorm)):
        norm.eps = 1e-6
    state = {}
    for name, tensor in vit.state_dict().items():
        for theirs, ours in names.items():
            name = name.replace(theirs, ours)
        state[name] = tensor
    slim.load_state_dict(state)
    with torch.no_grad():
        assert torch.allclose(
            vit(SLIDES, Plan()).embedding, slim(SLIDES, Plan()).embedding, rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("weighted", [False, True])
def test_each_slide_attends_to_itself_alone(weighted: bool) -> None:
    lengths = (5, 1, 9)
    draw = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 15, 2, 8, generator=draw)
    size = torch.randint(1, 6, (15,), generator=draw) if weighted else torch.ones(15)
    expected, start = torch.empty(15, 2, 8, dtype=torch.float64), 0
    for length in lengths:
        rows = slice(start, start + length)
        for head in range(2):
            weight = size[rows] * (q[rows, head].double() @ k[rows, head].double().T / 8**0.5).exp()
            expected[rows, head] = weight / weight.sum(1, keepdim=True) @ v[rows, head].double()
        start += length
    found = dense_attention(q, k, v, lengths, size.log() if weighted else None)
    assert torch.allclose(found.double(), expected, atol=1e-5)


def test_patches_anywhere_on_the_slide_reach_cls(vit: ViT) -> None:
    one = slide(57)
    one.tokens.x.requires_grad_()
    vit([one], Plan()).embedding.sum().backward()
    assert (one.tokens.x.grad.abs().sum(1) > 0).all()


def test_the_default_is_titans_shape() -> None:
    block = ViT(768, depth=1).blocks[0]
    assert (block.attn.num_heads, block.mlp.fc1.out_features) == (12, 3072)
    assert sum(p.numel() for p in ViT(768).blocks.parameters()) == 42_527_232


def test_vit_tiny_has_slim_tinys_shape() -> None:
    sizes = [sorted(p.numel() for p in encoder.parameters()) for encoder in (vit_tiny(D), slim_tiny(D))]
    assert sizes[0] == sizes[1]
