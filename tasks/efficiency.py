"""Efficiency: what a slide costs, in FLOPs, time, memory and tokens.

    flops              per slide, 2 x multiply-accumulates, mean over the test slides, from the tokens that
                       really entered each block; flops_padded as torchscale would do them
    tokens_block_<i>   patch tokens that entered block i, mean over the test slides
    kept_share         tokens that the reducers left, before last-layer fusion, over patches, mean over the test
                       slides
    latency_median_ms, latency_p95_ms, core_ms
                       of one slide at a time, encoder only, features in memory, on `slides` test slides at
                       equal steps of the size distribution, `repeats` rounds after a warm-up round
    peak_memory_mib    of tensors beyond weights and features, on the largest slide that was timed

FLOPs say what is asked of a machine, latency what this one makes of it: neither stands for the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch

from slimbench.encoder import SlideInput
from slimbench.measure.counters import UncountedError, count
from slimbench.measure.flops import Flops, Work
from slimbench.measure.latency import Timing, timed
from slimbench.measure.memory import peak_tensor_bytes
from slimbench.measure.passes import Pass, by_size
from slimbench.statistics.estimates import Metric
from slimbench.task import Evidence, Task, TaskResult


class Efficiency(Task):
    """slides: how many test slides are timed; repeats: rounds over them."""

    needs_patches = True
    primary = "flops"

    def __init__(self, *, slides: int = 16, repeats: int = 3) -> None:
        self.slides = slides
        self.repeats = repeats

    def run(self, evidence: Evidence) -> TaskResult:
        test, plan = evidence.embeddings("test"), evidence.plan
        inputs = [evidence.slide(slide.id) for slide in by_size(test.slides, self.slides)]
        device = inputs[0].tokens.device
        run = Pass(evidence.encoder, plan, evidence.precision)
        flops, facts = self._flops(evidence, run)
        timing, peak = self._measured(run, inputs, device)
        counts, n, passes = np.array(test.counts, dtype=float), len(test.slides), len(timing.wall)
        share = counts[:, evidence.encoder.kept_entry] / [slide.patches for slide in test.slides]
        return TaskResult(
            (
                *flops,
                *(
                    Metric(f"tokens_block_{block}", float(column.mean()), n)
                    for block, column in enumerate(counts.T)
                ),
                Metric("kept_share", float(share.mean()), n),
                Metric("latency_median_ms", 1e3 * timing.median, passes),
                Metric("latency_p95_ms", 1e3 * timing.p95, passes),
                Metric("core_ms", 1e3 * timing.core_seconds, passes),
                Metric("peak_memory_mib", peak / 2**20, 1),
            ),
            facts={
                "flops": facts,
                "timed_slides": len(inputs),
                "timed_patches": [len(slide.tokens) for slide in inputs],
                "repeats": self.repeats,
                "warm_up": "one round over the same slides",
                "batch": 1,
                "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
                "threads": torch.get_num_threads(),
                "precision": evidence.precision,
                "attention_backend": evidence.encoder.attention_backend(device, run.dtype),
                "memory": "CUDA allocator" if device.type == "cuda" else "live tensors",
            },
        )

    def _flops(self, evidence: Evidence, run: Pass) -> tuple[list[Metric], str]:
        """The metrics, and how they were found."""
        test, n = evidence.embeddings("test"), len(evidence.embeddings("test").slides)
        flops = Flops(evidence.encoder, evidence.plan)
        works: list[Work] = []
        try:
            for slide, counts in zip(test.slides, test.counts, strict=True):
                work = flops(slide.patches, counts)
                if work is None:
                    total = sum(count(partial(run, evidence.slide(slide.id))).total for slide in test.slides)
                    return [Metric("flops", total / n, n)], "counted by FlopCounterMode on every test slide"
                works.append(work)
        except UncountedError as error:
            return [Metric("flops", None, n, note=str(error))], "not countable"
        metrics = [
            Metric("flops", sum(work.total for work in works) / n, n),
            Metric("flops_padded", sum(work.padded for work in works) / n, n),
        ]
        return metrics, "encoder from token counts, reducers counted on made tokens"

    def _measured(self, run: Pass, inputs: Sequence[SlideInput], device: torch.device) -> tuple[Timing, int]:
        runs = [partial(run, slide) for slide in inputs]
        timed(runs, device)
        timing = timed(runs, device, self.repeats)
        return timing, peak_tensor_bytes(runs[-1], device)
