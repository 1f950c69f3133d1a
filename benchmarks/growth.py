"""Time and memory per token of a LongNet block as the slide grows.

    OMP_NUM_THREADS=1 python benchmarks/growth.py                     4,096 to 131,072 tokens, about 5 minutes
    OMP_NUM_THREADS=1 python benchmarks/growth.py --precision bf16
    OMP_NUM_THREADS=1 python benchmarks/growth.py --slide 100000      slim-base on one slide, about 3 minutes

Time: core-seconds of one block, sizes taking turns, the least of the rounds. Memory: what a pass of two
blocks adds to the resident set of a fresh process, beyond weights and features.
"""

from __future__ import annotations

import argparse
import json
import time
from functools import partial

import torch
from peers import HEADS, HIDDEN, RATIOS, SEGMENTS, WIDTH

from slimbench.encoders.blocks import Block
from slimbench.encoders.dilated_attention import dilated_attention
from slimbench.encoders.rope import rotations
from slimbench.measure.profile import profile_in_fresh_process
from slimbench.measure.subject import Subject, made_slide
from slimbench.runs.provenance import provenance


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--slide", type=int, help="instead: the whole encoder on one slide of so many patches"
    )
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print(json.dumps(provenance()))
    if asked.slide:
        whole(asked.slide, asked.precision)
        return
    sizes = [4096 << step for step in range(6)]
    seconds = rounds(sizes, asked.precision, asked.rounds)
    print(f"{asked.precision}\n{'tokens':>8} {'us/token':>9} {'over least':>11} {'KiB/token':>10}")
    per_token = {size: 1e6 * min(found) / size for size, found in seconds.items()}
    for size, us in per_token.items():
        subject = Subject(
            encoder="slim:depth=2", reducer="none", rate=0.0, precision=asked.precision, patches=size - 1
        )
        memory = profile_in_fresh_process(subject, {}).pass_bytes / 1024 / size
        print(f"{size:8,} {us:9.1f} {us / min(per_token.values()):11.3f} {memory:10.1f}")


def rounds(sizes: list[int], precision: str, number: int) -> dict[int, list[float]]:
    torch.manual_seed(0)
    block = Block(WIDTH, HEADS, HIDDEN).eval()
    attend = partial(dilated_attention, segments=SEGMENTS, ratios=RATIOS)
    found: dict[int, list[float]] = {size: [] for size in sizes}
    half = precision == "bf16"
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=half):
        for turn in range(number + 1):
            for size in sizes:
                tokens = made_slide(size, WIDTH).tokens
                turns = rotations(tokens.coords, WIDTH // HEADS, 10_000.0)
                began = time.process_time()
                block(tokens.x, turns, attend, by_head=True)
                if turn or size == max(
                    sizes
                ):  # the first round warms up; the largest size has no time for it
                    found[size].append(time.process_time() - began)
    return found


def whole(patches: int, precision: str) -> None:
    subject = Subject(encoder="slim-base", reducer="none", rate=0.0, precision=precision, patches=patches)
    found = profile_in_fresh_process(subject, {})
    print(
        f"slim-base, {precision}, {patches:,} patches: {found.process_bytes / 2**30:.2f} GiB resident at the peak, "
        f"{found.pass_bytes / 2**30:.2f} of them for the pass; {found.core_s:.0f} core-s"
    )


if __name__ == "__main__":
    main()
