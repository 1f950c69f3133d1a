"""Retrieval ranks of N slides and N reports against the matrix product alone.

    python benchmarks/retrieval.py                  24,000 pairs, a few seconds
    python benchmarks/retrieval.py --n 100000       the bar: at most 1.15 times the product, 200 MiB beside the inputs

CPU seconds of one thread, both alternating in one process; memory is the growth of the peak.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable

import numpy as np
import torch

from slimbench.runs.provenance import provenance
from slimbench.statistics.retrieval import rank_pairs


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--n", type=int, default=24_000, help="slides, and reports")
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    n = arguments.n
    images, texts = (
        torch.nn.functional.normalize(torch.randn(n, arguments.dim, generator=generator), dim=1).numpy()
        for _ in range(2)
    )
    owner = np.arange(n)
    rank_pairs(images[:2_000], texts[:2_000], owner[:2_000])  # both sides warm
    product(images[:2_000], texts[:2_000])
    before = peak_mib()
    whole = seconds(lambda: rank_pairs(images, texts, owner))
    grown = peak_mib() - before
    pairs = [(seconds(lambda: product(images, texts)), whole)]
    for _ in range(arguments.repeats - 1):
        ours = seconds(lambda: rank_pairs(images, texts, owner))
        pairs.append((seconds(lambda: product(images, texts)), ours))
    alone, ours = (min(column) for column in zip(*pairs, strict=True))
    print(json.dumps(provenance()))
    print(f"{n} x {n} x {arguments.dim}, {'float64' if n <= 20_000 else 'float32'}")
    print(f"product alone      {alone:8.2f} CPU s  ({2 * n * n * arguments.dim / alone / 1e9:.0f} GFLOP/s)")
    print(f"ranks, both ways   {ours:8.2f} CPU s  ratio {ours / alone:.3f}  (bar 1.15)")
    print(f"peak memory grew   {grown:8.0f} MiB  (bar 200)")


def product(images: np.ndarray, texts: np.ndarray, tile: int = 4096) -> None:
    """The scores alone, in tiles of the size that is fastest here."""
    dtype = torch.float64 if max(len(images), len(texts)) <= 20_000 else torch.float32
    x, y = torch.from_numpy(images).to(dtype), torch.from_numpy(texts).to(dtype)
    buffer = torch.empty(tile * tile, dtype=dtype)
    for a in x.split(tile):
        for b in y.split(tile):
            torch.mm(a, b.T, out=buffer[: len(a) * len(b)].view(len(a), len(b)))


def seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
