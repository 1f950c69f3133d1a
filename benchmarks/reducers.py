"""What reducers cost beside the encoder: the time of a pruned slide, and each reducer alone as slides grow.

    OMP_NUM_THREADS=1 python benchmarks/reducers.py slide           slim unpruned and pruned by 90 %, about 2 minutes
    OMP_NUM_THREADS=1 python benchmarks/reducers.py alone           every reducer, 17,182 and 100,000 tokens, about 3
    OMP_NUM_THREADS=1 python benchmarks/reducers.py alone tome      one of them

"slide": passes of the whole encoder over one slide, taking turns in one process, so that a busy machine slows
all of them alike; medians of the rounds, and the least.
"alone": one reduction as before the second block at rate 0.9, on noise of width 768 beside a block of the
paper's size, in a fresh process each: core-seconds (the least of three) and what the resident set grows by.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from statistics import median

import torch
from peers import HEADS, HIDDEN, RATIOS, SEGMENTS, WIDTH

from slimbench import registry
from slimbench.context import Context
from slimbench.encoder import Plan, SlideInput
from slimbench.encoders.blocks import Block
from slimbench.encoders.dilated_attention import dilated_attention
from slimbench.encoders.rope import rotations
from slimbench.measure.passes import Pass
from slimbench.measure.process import peak_resident_bytes, resident_bytes, start_peak
from slimbench.measure.profile import WARM_UP, reducer_clock
from slimbench.measure.subject import Subject, encoder_of, first_patches, made_slide
from slimbench.runs.provenance import provenance
from slimbench.schedule import Geometric

CPU = torch.device("cpu")
DEPTH = 6
SIZES = (17_182, 100_000)
BLOCK = "(one block)"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("slide", "alone"))
    parser.add_argument(
        "reducers", nargs="*", help="default: cropr random tome for a slide, all of them alone"
    )
    parser.add_argument("--rate", type=float, default=0.9)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print(json.dumps(provenance()))
    if asked.what == "slide":
        slide(asked.reducers or ["cropr", "random", "tome"], asked.rate, asked.rounds)
    else:
        alone([BLOCK, *(asked.reducers or every_reducer())], asked.rate)


def slide(reducers: list[str], rate: float, rounds: int) -> None:
    given, geometric = made_slide(SIZES[0], WIDTH), Geometric()
    runs: dict[str, Pass] = {}
    for spec, cut in (("none", 0.0), *((spec, rate) for spec in reducers)):
        subject = Subject(encoder="slim", reducer=spec, rate=cut, patches=SIZES[0])
        runs[spec] = Pass(encoder_of(subject, WIDTH).eval(), Plan(geometric, cut, 0), "fp32")
        runs[spec](first_patches(given, WARM_UP))
    seconds: dict[str, list[float]] = {spec: [] for spec in runs}
    inside: dict[str, list[float]] = {spec: [] for spec in runs}
    for _ in range(rounds):
        for spec, run in runs.items():
            with reducer_clock(run.encoder, CPU) as spent:
                seconds[spec].append(core_seconds(partial(run, given)))
            inside[spec].append(spent[0])
    print(f"slim, fp32, {SIZES[0]:,} patches, rate {rate:g}, {rounds} rounds; in brackets the least\n")
    print("| reducer | core-s | ÷ none | reducer's share |\n| --- | ---: | ---: | ---: |")
    base = seconds["none"]
    for spec, found in seconds.items():
        print(
            f"| {spec} | {median(found):.2f} ({min(found):.2f}) | {median(found) / median(base):.3f} "
            f"({min(found) / min(base):.3f}) | {100 * median(inside[spec]) / median(found):.2f} % |"
        )


def alone(reducers: list[str], rate: float) -> None:
    print(
        "| | "
        + " | ".join(f"core-s at {n:,} | of a block | MiB | KiB/token" for n in SIZES)
        + " | memory grows |"
    )
    print("| --- |" + " ---: |" * (4 * len(SIZES) + 1))
    blocks: dict[int, float] = {}
    for spec in reducers:
        row, per_token = [], []
        for size in SIZES:
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                seconds, grown = process.submit(measured, spec, size, rate).result()
            blocks.setdefault(size, seconds)
            per_token.append(grown / 1024 / size)
            row.append(
                f"{seconds:.3f} | {100 * seconds / blocks[size]:.2f} % | {grown / 2**20:.0f} | {per_token[-1]:.1f}"
            )
        print(f"| {spec} | {' | '.join(row)} | {per_token[-1] / per_token[0]:.2f} |", flush=True)
    print(f"\nmemory grows: KiB per token at {SIZES[-1]:,} over those at {SIZES[0]:,}; 1 is linear")


def measured(spec: str, size: int, rate: float) -> tuple[float, int]:
    """Core-seconds and bytes of one reduction (or block) of `size` tokens; alone in its process."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    given, block = made_slide(size, WIDTH), Block(WIDTH, HEADS, HIDDEN).eval()
    make = block_on if spec == BLOCK else partial(reducer_on, spec, rate)
    with torch.inference_mode():
        make(block, first_patches(given, WARM_UP))()
        run = make(block, given)
        before = resident_bytes()
        start_peak()
        first = core_seconds(run)
        grown = peak_resident_bytes() - before
        more = [core_seconds(run) for _ in range(0 if spec == BLOCK else 2)]
        return min([first, *more]), grown


def reducer_on(spec: str, rate: float, block: Block, given: SlideInput) -> Callable[[], object]:
    reducer = registry.reducers.build(spec, dim=WIDTH).eval()
    context = Context(given.tokens, torch.randn(WIDTH), 1, 0, truth=given.truth, ahead=block)
    keep = Geometric().counts(len(given.tokens), DEPTH, rate)[1]
    return partial(reducer, given.tokens, keep, context)


def block_on(block: Block, given: SlideInput) -> Callable[[], object]:
    turns = rotations(given.tokens.coords, WIDTH // HEADS, 10_000.0)
    attend = partial(dilated_attention, segments=SEGMENTS, ratios=RATIOS)
    return partial(block, given.tokens.x, turns, attend, by_head=True)


def every_reducer() -> list[str]:
    return [name for name in registry.reducers.plugins() if name not in ("none", "reverse")]


def core_seconds(run: Callable[[], object]) -> float:
    began = time.process_time()
    run()
    return time.process_time() - began


if __name__ == "__main__":
    main()
