"""Dilated attention alone: forward and backward of one long slide, and of a batch of short ones.

    python benchmarks/attention.py slide                                  ours and dense, about 3 minutes
    python benchmarks/attention.py slide --precision bf16 --torchscale PATH --no-dense
    python benchmarks/attention.py packed                                 16 slides, packed against padded

Core-seconds of one thread, all sides taking turns in one process; the median of the rounds, and the least.
"slide": the paper's branches on one slide, useful operations against a matrix product's peak of the same
rounds (2 products forward, 5 backward, each pair that is attended to counted once).
"packed": 2 heads of 24, segments 64 and 512, ratios 1 and 2, against the same slides padded to the longest
under dense masks, by torch's dispatcher. "prepared" leaves out what is made once for new lengths: our
index and their masks.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random
from statistics import median

import torch
from peers import HEADS, RATIOS, SEGMENTS, WIDTH, torchscale_block
from torch import Tensor, nn
from torch.nn import functional as F

from slimbench.encoders.attention_backends import backend
from slimbench.encoders.attention_rows import plan_rows
from slimbench.encoders.dilated_attention import attended_pairs, dilated_attention
from slimbench.measure.latency import matmul_peak
from slimbench.runs.provenance import provenance

CPU = torch.device("cpu")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
Runs = dict[str, Callable[[], object]]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("slide", "packed"))
    parser.add_argument("--tokens", type=int, default=17_183, help="of the slide, [CLS] among them")
    parser.add_argument("--precision", choices=tuple(DTYPES), default="fp32")
    parser.add_argument("--rounds", type=int, help="default: 3 for a slide, 31 for packs")
    parser.add_argument("--torchscale", type=Path, help="your checkout of github.com/microsoft/torchscale")
    parser.add_argument("--no-dense", action="store_true", help="leave dense attention out")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    dtype = DTYPES[asked.precision]
    print(json.dumps(provenance()))
    print(f"torch {torch.__version__}, 1 thread, {backend(CPU, dtype).name}: {backend(CPU, dtype).reason}")
    if asked.what == "slide":
        slide(asked.tokens, dtype, asked.rounds or 3, asked.torchscale, not asked.no_dense)
        return
    for shortest, longest in ((130, 223), (1000, 2000)):
        packed(shortest, longest, dtype, asked.rounds or 31)


def slide(tokens: int, dtype: torch.dtype, rounds: int, checkout: Path | None, dense: bool) -> None:
    d = WIDTH // HEADS
    qkv = torch.randn(tokens, 3, HEADS, d, dtype=dtype, requires_grad=True)
    grad = torch.randn(tokens, HEADS, d, dtype=dtype)
    sides: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: dilated_attention(*qkv.unbind(1), SEGMENTS, RATIOS)
    }
    if dense:
        sides["dense"] = lambda: F.scaled_dot_product_attention(
            *(x.transpose(0, 1)[None] for x in qkv.unbind(1))
        )[0].transpose(0, 1)
    if checkout is None:
        print("torchscale is left out: name your checkout with --torchscale PATH")
    else:
        peer = torchscale_block(checkout).self_attn
        peer.q_proj = peer.k_proj = peer.v_proj = peer.out_proj = nn.Identity()
        sides["torchscale"] = lambda: peer(*(x.reshape(1, tokens, WIDTH) for x in qkv.unbind(1)))[0].view(
            tokens, HEADS, d
        )
    out: dict[str, Tensor] = {}
    peaks: list[float] = []

    def forward(name: str) -> None:
        out[name] = sides[name]()

    runs: Runs = {"peak": lambda: peaks.append(matmul_peak(dtype, CPU))}
    for name in sides:
        runs[f"{name} forward"] = partial(forward, name)
        runs[f"{name} backward"] = lambda name=name: torch.autograd.grad(out.pop(name), qkv, grad)
    seconds = taking_turns(runs, rounds)

    products = 2 * d * attended_pairs(tokens, SEGMENTS, RATIOS, HEADS)
    print(f"{dtype}, {tokens:,} tokens, {HEADS} heads of {d}, forward {2 * products / 1e9:.1f} GFLOP")
    for name in sides:
        f, b = (median(seconds[f"{name} {way}"]) for way in ("forward", "backward"))
        print(f"{name:11} forward {f:7.3f}  backward {b:7.3f} core-s  backward over forward {b / f:.2f}")
    for way, count in (("forward", 2), ("backward", 5)):
        mine = median(seconds[f"ours {way}"])
        rate = count * products / mine
        line = f"ours {way}: {rate / 1e9:.1f} GFLOP/s, {rate / max(peaks):.2f} of a product's peak"
        others = (
            f"{median(seconds[f'{name} {way}']) / mine:.2f} times {name}" for name in sides if name != "ours"
        )
        print(", ".join((line, *others)))


def packed(shortest: int, longest: int, dtype: torch.dtype, rounds: int) -> None:
    segments, ratios, heads, d, count = (64, 512), (1, 2), 2, 24, 16
    draw = Random(0)
    lengths = tuple(draw.randint(shortest, longest) for _ in range(count))
    ours = torch.randn(sum(lengths), 3, heads, d, dtype=dtype, requires_grad=True)
    theirs = torch.randn(count, max(lengths), 3, heads, d, dtype=dtype, requires_grad=True)
    masks = dense_masks(lengths, segments, ratios, heads, dtype)

    def pack() -> Tensor:
        return dilated_attention(*ours.unbind(1), segments, ratios, lengths=lengths)

    def pad(masks: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in theirs.unbind(2)), attn_mask=masks)

    def pack_new_lengths() -> Tensor:
        plan_rows.cache_clear()
        return pack()

    grad, padded_grad = torch.randn_like(pack()), torch.randn_like(pad(masks))
    runs: Runs = {
        "packed, prepared": lambda: torch.autograd.grad(pack(), ours, grad),
        "padded, prepared": lambda: torch.autograd.grad(pad(masks), theirs, padded_grad),
        "packed": lambda: torch.autograd.grad(pack_new_lengths(), ours, grad),
        "padded": lambda: torch.autograd.grad(
            pad(dense_masks(lengths, segments, ratios, heads, dtype)), theirs, padded_grad
        ),
    }
    seconds = taking_turns(runs, rounds)
    print(f"{dtype}, {count} slides of {shortest} to {longest} tokens, forward and backward")
    for what in (", prepared", ""):
        a, b = seconds[f"packed{what}"], seconds[f"padded{what}"]
        print(
            f"packed {1e3 * median(a):8.2f} ({1e3 * min(a):.2f})  padded {1e3 * median(b):8.2f} ({1e3 * min(b):.2f}) "
            f"core-ms{what}: {median(b) / median(a):.2f} times ({min(b) / min(a):.2f})"
        )


def dense_masks(
    lengths: tuple[int, ...],
    segments: tuple[int, ...],
    ratios: tuple[int, ...],
    heads: int,
    dtype: torch.dtype,
) -> Tensor:
    """[B, H, M, M] log of how many branches let a query see a key; a padded query sees key 0."""
    row = torch.arange(max(lengths))
    times = torch.zeros(heads, len(row), len(row), dtype=dtype)
    for segment, ratio in zip(segments, ratios, strict=True):
        same = row[:, None] // segment == row // segment
        for head in range(heads):
            member = row % ratio == head // -(-heads // ratio)
            times[head] += same & member[:, None] & member
    absent = row >= torch.tensor(lengths)[:, None]
    masks = times.log().repeat(len(lengths), 1, 1, 1).masked_fill_(absent[:, None, None], -torch.inf)
    masks[..., 0].masked_fill_(absent[:, None], 0)
    return masks


def taking_turns(runs: Runs, rounds: int) -> dict[str, list[float]]:
    """Core-seconds of each run in each of `rounds` rounds, after one that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            began = time.process_time()
            run()
            if number:
                seconds[name].append(time.process_time() - began)
    return seconds


if __name__ == "__main__":
    main()
