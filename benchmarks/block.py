"""One LongNet block at inference: ours, torchscale's, and ours with dense attention, side by side.

    python benchmarks/block.py                                    ours against dense, about 3 minutes
    python benchmarks/block.py --torchscale PATH --precision bf16

Core-seconds of one thread, all sides taking turns in one process: the median of the rounds, and the least;
the products' peak is measured in the same rounds. Ours includes rotary positions, torchscale has none.
"products" are our block's linear layers alone and "attention" its attention alone: what the two take together
bounds what the block can reach of the peak.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import torch
from peers import HEADS, HIDDEN, RATIOS, SEGMENTS, WIDTH, dense_attend, torchscale_block

from slimbench.encoders.blocks import Block
from slimbench.encoders.dilated_attention import attended_pairs, dilated_attention
from slimbench.encoders.rope import rotations
from slimbench.measure.latency import matmul_peak
from slimbench.runs.provenance import provenance

CHUNK = 1024  # rows that the products alone are taken over, about as many as the block takes at once


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=17_183, help="rows, [CLS] among them")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--torchscale", type=Path, help="your checkout of github.com/microsoft/torchscale")
    parser.add_argument("--no-dense", action="store_true", help="leave dense attention out")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    dtype = torch.bfloat16 if asked.precision == "bf16" else torch.float32

    block = Block(WIDTH, HEADS, HIDDEN).eval()
    x = torch.randn(asked.tokens, WIDTH)
    side = round(asked.tokens**0.5)
    rows = torch.arange(asked.tokens)
    turns = rotations(torch.stack((rows % side, rows // side), 1), WIDTH // HEADS, 10_000.0)
    dilated = partial(dilated_attention, segments=SEGMENTS, ratios=RATIOS)

    def ours(attend: Callable[..., torch.Tensor]) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            block(
                x, turns, attend, by_head=True
            )  # in place: the next round goes on from here, at the same cost

    hidden = torch.randn(asked.tokens, HIDDEN)
    by_head = torch.randn(3, HEADS, asked.tokens, WIDTH // HEADS, dtype=dtype).transpose(1, 2)

    def products() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            for layer, given in ((block.qkv, x), (block.out, x), (block.fc1, x), (block.fc2, hidden)):
                for rows in given.split(CHUNK):
                    layer(rows)

    sides: dict[str, Callable[[], object]] = {
        "ours": partial(ours, dilated),
        "products": products,
        "attention": lambda: dilated(*by_head),
    }
    if not asked.no_dense:
        sides["dense"] = partial(ours, dense_attend())
    if asked.torchscale is None:
        print("torchscale is left out: name your checkout with --torchscale PATH")
    else:
        peer, y = (
            torchscale_block(asked.torchscale).to(dtype),
            torch.randn(1, asked.tokens, WIDTH, dtype=dtype),
        )
        sides["torchscale"] = partial(peer, y, encoder_padding_mask=None)

    pairs = attended_pairs(asked.tokens, SEGMENTS, RATIOS, HEADS)
    flops = {
        operation.name: operation.flops for operation in block.operations("", asked.tokens, pairs, pairs)
    }
    useful = sum(flops.values())
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    peaks = []
    with torch.inference_mode():
        for _ in range(asked.rounds):
            peaks.append(matmul_peak(dtype, torch.device("cpu")))
            for name, run in sides.items():
                began = time.process_time()
                run()
                seconds[name].append(time.process_time() - began)
    print(json.dumps(provenance()))
    print(
        f"{asked.precision}, {asked.tokens:,} tokens, {WIDTH} wide, {HEADS} heads, {useful / 1e9:.1f} GFLOP"
    )
    for statistic in (median, min):
        found = {name: statistic(times) for name, times in seconds.items()}
        peak = (max if statistic is min else median)(peaks)
        print(f"\n{statistic.__name__} of {asked.rounds} rounds; a matrix product {peak / 1e9:.1f} GFLOP/s")
        for name, spent in found.items():
            print(f"{name:12}{spent:8.2f} core-s   {spent / found['ours']:5.2f} times ours")
        alone = found["products"] + found["attention"]
        attention = flops["attention"]
        shares = {
            "the block": useful / found["ours"],
            "its products alone": (useful - attention) / found["products"],
            "its attention alone": attention / found["attention"],
            "both alone": useful / alone,
        }
        print("of the peak: " + ", ".join(f"{name} {rate / peak:.3f}" for name, rate in shares.items()))


if __name__ == "__main__":
    main()
