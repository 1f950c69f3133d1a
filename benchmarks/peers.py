"""The other implementations that ours is timed against.

torchscale cannot be shipped (its LongNet is on GitHub only and has no CPU path): the benchmarks take the
path of the user's own checkout of github.com/microsoft/torchscale, needing einops beside it.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SEGMENTS = (1024, 2048, 4096, 8192, 16384)
RATIOS = (1, 2, 4, 8, 16)
WIDTH, HEADS, HIDDEN = 768, 16, 3072


def torchscale_block(checkout: Path) -> nn.Module:
    """One layer of torchscale's LongNet, made to run on the CPU by handing it torch's flash operator.

    Called as block(x [1, T, D], encoder_padding_mask=None) -> (x, None).
    """
    _stub("timm.models.layers", drop_path=lambda x, *_: x)
    _stub("fairscale.nn", checkpoint_wrapper=lambda m, *_, **__: m, wrap=lambda m, *_, **__: m)
    sys.path.insert(0, str(checkout))
    import torchscale.component.multihead_attention as attention
    from torchscale.architecture.config import EncoderConfig
    from torchscale.model.LongNet import LongNetEncoder

    def flash(
        q: Tensor, k: Tensor, v: Tensor, dropout: float, bias: None, scale: float | None, causal: bool
    ) -> tuple[Tensor, Tensor]:
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), 0.0, causal, scale=scale
        )
        return out.transpose(1, 2), lse

    attention.flash_attn_func = flash
    config = EncoderConfig(
        encoder_layers=1,
        encoder_embed_dim=WIDTH,
        encoder_attention_heads=HEADS,
        encoder_ffn_embed_dim=HIDDEN,
        vocab_size=-1,
        no_output_layer=True,
        flash_attention=True,
        subln=False,
        dilated_ratio=str(list(RATIOS)),
        segment_length=str(list(SEGMENTS)),
    )
    layer: nn.Module = LongNetEncoder(config).eval().layers[0]
    return layer


def dense_attend() -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Full attention [T, H, d] by torch's own dispatcher, for our block."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        heads_first = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
        return F.scaled_dot_product_attention(*heads_first)[0].transpose(0, 1)

    return attend


def _stub(name: str, **attributes: object) -> None:
    """A module `name` with its parents and nothing but `attributes`."""
    parent = None
    for end in range(1, name.count(".") + 2):
        path = ".".join(name.split(".")[:end])
        module = sys.modules[path] = types.ModuleType(path)
        if parent is not None:
            setattr(parent, path.rpartition(".")[2], module)
        parent = module
    vars(parent).update(attributes)
