"""How long a run takes, in seconds of the wall and of the processor."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class Timing:
    """Seconds of each pass: on the wall, and of this process on all its cores (which a busy machine
    does not lengthen as much)."""

    wall: tuple[float, ...]
    cpu: tuple[float, ...]

    @property
    def median(self) -> float:
        return float(np.median(self.wall))

    @property
    def p95(self) -> float:
        """95th percentile of the wall times, linear between passes; the longest one below 20 passes."""
        return float(np.quantile(self.wall, 0.95)) if len(self.wall) >= 20 else max(self.wall)

    @property
    def core_seconds(self) -> float:
        """Median seconds of the processor."""
        return float(np.median(self.cpu))


def timed(runs: Sequence[Callable[[], Any]], device: torch.device, repeats: int = 1) -> Timing:
    """Time each of `runs`, `repeats` times round; the caller warms up."""
    wall, cpu = [], []
    for _ in range(repeats):
        for run in runs:
            settle(device)
            began, busy = time.perf_counter(), time.process_time()
            run()
            settle(device)
            wall.append(time.perf_counter() - began)
            cpu.append(time.process_time() - busy)
    return Timing(tuple(wall), tuple(cpu))


def settle(device: torch.device) -> None:
    """Wait until everything that was queued on a GPU has run."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matmul_peak(dtype: torch.dtype, device: torch.device, size: int = 2048, repeats: int = 3) -> float:
    """FLOPs per second of the best of `repeats` products of two square matrices: the machine's own bound
    in this run, with this many threads.

    On the CPU per second of the processor and thread, so that a busy machine does not lower it.
    """
    a = torch.randn(size, size, device=device).to(dtype)
    a @ a
    timing = timed([lambda: a @ a], device, repeats)
    return 2 * size**3 / min(timing.cpu if device.type == "cpu" else timing.wall)
