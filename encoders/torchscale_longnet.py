"""LongNet by its owners: torchscale's encoder around slimbench's dilated attention.

The registry's torchscale 0.3.0 has the blocks, their start and their layout, and no LongNet. Three small
classes add it, and with [CLS], the patch projection and the outer norm the state dict is Prov-GigaPath's:
247 tensors, 86,330,880 parameters. It is trained like `slim`; above all it is a second implementation of
everything but the kernel that checks `gigapath` and `slim`.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from slimbench.block_encoder import BlockEncoder, Pack
from slimbench.encoder import Operation, SlideInput
from slimbench.encoders.attention_backends import backend
from slimbench.encoders.blocks import Ahead
from slimbench.encoders.dilated_attention import attended_pairs, check_branches, dilated_attention
from slimbench.encoders.gigapath import RATIOS, SEGMENTS
from slimbench.encoders.sincos import GridPositions

try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # it imports timm by its old name
        from torchscale.architecture.config import EncoderConfig
        from torchscale.architecture.encoder import Encoder, EncoderLayer
        from torchscale.component.multihead_attention import MultiheadAttention
except ImportError as error:
    raise ImportError(
        "torchscale is missing: pip install 'slimbench[torchscale]' (brings timm 0.6.13), or beside timm 1.x "
        "pip install --no-deps torchscale==0.3.0 fairscale==0.4.0"
    ) from error


class TorchscaleLongNet(BlockEncoder):
    """torchscale's LongNet over patch features [N, input_dim]; the embedding is the normalised [CLS], [width].

    width, depth, heads, mlp, segments, ratios    the defaults are Prov-GigaPath's
    proportional  add log(size) to key logits once tokens were merged (ToMe)
    """

    def __init__(
        self,
        input_dim: int,
        *,
        width: int = 768,
        depth: int = 12,
        heads: int = 16,
        mlp: int = 3072,
        segments: tuple[int, ...] = SEGMENTS,
        ratios: tuple[int, ...] = RATIOS,
        proportional: bool = True,
    ) -> None:
        super().__init__(width, depth)
        check_branches(segments, ratios)
        self.branches, self.proportional = (segments, ratios), proportional
        config = EncoderConfig(
            encoder_embed_dim=width,
            encoder_attention_heads=heads,
            encoder_ffn_embed_dim=mlp,
            encoder_layers=depth,
            no_output_layer=True,
        )
        config.branches = self.branches
        self.patch_embed = nn.Sequential(OrderedDict(proj=nn.Linear(input_dim, width)))
        self.cls_token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.positions = GridPositions(width)
        self.encoder: Any = LongNetEncoder(config)
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def embed(self, slides: Sequence[SlideInput]) -> Pack:
        parts = []
        for slide in slides:
            x = self.patch_embed(slide.tokens.x) + self.positions(slide.tokens.coords, slide.id)
            parts.append((self.cls_token.flatten(), slide.tokens.replace_x(x)))
        return Pack.join(parts)

    def block(self, index: int, pack: Pack) -> Tensor:
        log_size = pack.size.log() if pack.merged and self.proportional else None
        # rel_pos is the one argument that a layer hands on to its attention unread.
        layer: Any = self.encoder.layers[index]
        turned: Tensor = layer(pack.x[None], None, rel_pos=(pack.lengths, log_size))[0][0]
        return turned

    def attention(self, index: int) -> LongNetAhead:
        return LongNetAhead(self.encoder.layers[index])

    def pool(self, pack: Pack) -> Tensor:
        pooled: Tensor = self.norm(self.encoder.layer_norm(pack.x[pack.cls_rows()]))
        return pooled

    def operations(self, patches: int, counts: Sequence[int]) -> tuple[Operation, ...]:
        flops = 2 * patches * self.patch_embed.get_parameter("proj.weight").numel()
        stated = [Operation("patch_embed", "proj", flops, flops)]
        for index, tokens in enumerate(counts):
            layer, rows = self.encoder.layers[index], tokens + 1
            attention = layer.self_attn
            products = {
                "q_proj": attention.q_proj,
                "k_proj": attention.k_proj,
                "v_proj": attention.v_proj,
                "out_proj": attention.out_proj,
                "fc1": layer.ffn.fc1,
                "fc2": layer.ffn.fc2,
            }
            for name, product in products.items():
                flops = 2 * rows * product.weight.numel()
                stated.append(Operation(f"encoder.layers.{index}", name, flops, flops))
            branches, pair = (rows, *self.branches, attention.num_heads), 4 * attention.head_dim
            flops, padded = attended_pairs(*branches) * pair, attended_pairs(*branches, padded=True) * pair
            stated.append(Operation(f"encoder.layers.{index}", "attention", flops, padded))
        return tuple(stated)

    def attention_backend(self, device: torch.device, dtype: torch.dtype) -> str:
        return str(backend(device, dtype))


class DilatedAttention(MultiheadAttention):
    """query [1, T, D], slides packed end to end; rel_pos = (their lengths, log_size [T] or None)."""

    def forward(self, query: Tensor, rel_pos: tuple[tuple[int, ...], Tensor | None], **ignored: Any) -> Any:
        lengths, log_size = rel_pos
        q, k, v = (
            projection(query[0]).unflatten(1, (self.num_heads, -1))
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = dilated_attention(
            q, k, v, *self.args.branches, lengths=lengths, log_size=log_size, padding="torchscale"
        )
        return self.out_proj(self.inner_attn_ln(mixed.flatten(1)))[None], None


class LongNetLayer(EncoderLayer):
    def build_self_attention(self, embed_dim: int, args: Any) -> DilatedAttention:
        return DilatedAttention(
            args, embed_dim, args.encoder_attention_heads, self_attention=True, subln=args.subln
        )


class LongNetAhead(Ahead):
    """A layer as a reducer before it sees it."""

    def __init__(self, layer: Any) -> None:
        self.norm1, self.heads = layer.self_attn_layer_norm, layer.self_attn.num_heads
        self.projections = (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj)

    def projection(self, which: int) -> tuple[Tensor, Tensor]:
        return self.projections[which].weight, self.projections[which].bias


class LongNetEncoder(Encoder):
    """torchscale's encoder with dilated attention in every layer."""

    def build_encoder_layer(self, args: Any, depth: int, **ignored: Any) -> LongNetLayer:
        return LongNetLayer(args, depth)
