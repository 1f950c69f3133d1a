"""What one encoder with one reducer costs: FLOPs three ways, time, memory, tokens, reach.

`profile(subject)` measures in this process; `python -m slimbench.measure.profile` reads a Subject as JSON
and prints a Profile, which is how each row gets a process of its own.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from pydantic import Field

from slimbench.block_encoder import BlockEncoder
from slimbench.encoder import Plan, SlideEncoder, SlideInput
from slimbench.measure.latency import Timing, matmul_peak, settle, timed
from slimbench.measure.passes import Pass
from slimbench.measure.process import answer, fresh, peak_resident_bytes, resident_bytes, start_peak
from slimbench.measure.reach import reach
from slimbench.measure.subject import Strict, Subject, encoder_of, first_patches, slides_of
from slimbench.measure.traced import ThreeWays, three_ways
from slimbench.schedule import schedule

WARM_UP = 2048  # patches; enough to load every kernel


class Profile(Strict):
    """What was measured; FLOPs, tokens and shares are means over the slides.

    patches           of each slide
    tokens_per_block  patch tokens that entered each block
    stated, padded    FLOPs as the encoder states them (None: it does not), and with zero-padded segments
    counted, fvcore   FLOPs as FlopCounterMode and fvcore counted them
    operations        {operation: FLOPs} of `counted`
    reducer_flops     of all reducers
    median_s, p95_s   of one slide on the wall, over `passes` passes; core_s: median of the processor
    reducer_share     of the reducers in the time of the passes
    peak_flops_per_s  of a matrix product in this process, on the CPU per thread; peak_share: what the passes
                      reach of it
    pass_bytes        memory at the peak beyond weights and features; process_bytes: in all. Resident set on
                      the CPU, the allocator's on CUDA
    reach             shares of patches that can have reached [CLS] after each block, the first directly; None
                      where the encoder does not say
    """

    subject: Subject
    patches: tuple[int, ...]
    tokens_per_block: tuple[float, ...]
    stated: float | None
    padded: float | None
    counted: float
    fvcore: float
    operations: dict[str, float]
    reducer_flops: float
    median_s: float
    p95_s: float
    core_s: float
    passes: int
    warm_up: str
    patches_per_s: float
    reducer_share: float
    peak_flops_per_s: float
    peak_share: float
    pass_bytes: int
    process_bytes: int
    threads: int
    attention_backend: str
    reach: tuple[float, ...] | None
    provenance: dict[str, Any] = Field(default_factory=dict)


def profile(subject: Subject) -> Profile:
    """Measure in this process. Raises UncountedError, DisagreementError, and what building raises."""
    device = torch.device(subject.device)
    slides = list(slides_of(subject, device))
    encoder = encoder_of(subject, slides[0].tokens.x.shape[1]).to(device).eval()
    run = Pass(encoder, Plan(schedule(subject.schedule), subject.rate, subject.seed), subject.precision)
    peaks = [matmul_peak(run.dtype, device)]
    for slide in slides:
        run(first_patches(slide, WARM_UP))
    before = _held(device)
    with reducer_clock(encoder, device) as spent:
        timing = timed([partial(run, slide) for slide in slides], device, subject.repeats)
    top = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_resident_bytes()
    peaks.append(matmul_peak(run.dtype, device))
    counted = Pass(encoder, replace(run.plan, trace=True), subject.precision)
    ways = [three_ways(counted, slide) for slide in slides]
    return _profile(subject, run, slides, timing, ways, max(peaks), (before, top), spent[0])


def profile_in_fresh_process(subject: Subject, provenance: dict[str, Any]) -> Profile:
    """`profile` in a process that did nothing else, so that its memory is its own."""
    found = Profile.model_validate_json(fresh(__name__, subject.model_dump_json()))
    return found.model_copy(update={"provenance": provenance})


def _profile(
    subject: Subject,
    run: Pass,
    slides: Sequence[SlideInput],
    timing: Timing,
    ways: Sequence[ThreeWays],
    peak: float,
    memory: tuple[int, int],
    reducers_s: float,
) -> Profile:
    patches = [len(slide.tokens) for slide in slides]
    total = [way.torch.total for way in ways]
    busy = timing.cpu if subject.device == "cpu" else timing.wall
    stated = [way.stated for way in ways if way.stated is not None]
    shares = [
        reach(run.encoder, way.encoded.traces[0], way.encoded.counts[0]) for way in ways if way.encoded.traces
    ]
    reached = [found for found in shares if found is not None]
    reducers = [sum(f for part, f in w.torch.parts.items() if part.startswith("reducers.")) for w in ways]
    names = sorted({name for way in ways for name in way.torch.operations})
    return Profile(
        subject=subject,
        patches=tuple(patches),
        tokens_per_block=tuple(np.mean([way.encoded.counts[0] for way in ways], axis=0).tolist()),
        stated=_mean([work.total for work in stated]),
        padded=_mean([work.padded for work in stated]),
        counted=float(np.mean(total)),
        fvcore=float(np.mean([way.fvcore.total for way in ways])),
        operations={
            name: float(np.mean([way.torch.operations.get(name, 0) for way in ways])) for name in names
        },
        reducer_flops=float(np.mean(reducers)),
        median_s=timing.median,
        p95_s=timing.p95,
        core_s=timing.core_seconds,
        passes=len(timing.wall),
        warm_up=f"one pass over the first {WARM_UP:,} patches of each slide",
        patches_per_s=sum(patches) * subject.repeats / sum(timing.wall),
        reducer_share=reducers_s / sum(busy),
        peak_flops_per_s=peak,
        peak_share=sum(total) * subject.repeats / sum(busy) / peak,
        pass_bytes=memory[1] - memory[0],
        process_bytes=memory[1],
        threads=torch.get_num_threads(),
        attention_backend=run.encoder.attention_backend(torch.device(subject.device), run.dtype),
        reach=tuple(np.mean(reached, axis=0).tolist()) if reached else None,
    )


def _held(device: torch.device) -> int:
    """Bytes held now; the peak counts from here."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    held = resident_bytes()
    start_peak()
    return held


@contextmanager
def reducer_clock(encoder: SlideEncoder, device: torch.device) -> Iterator[list[float]]:
    """Seconds spent inside reducers, in a list of one: of the processor on the CPU, else on the wall."""
    spent, began = [0.0], [0.0]

    def now() -> float:
        settle(device)
        return time.process_time() if device.type == "cpu" else time.perf_counter()

    def start(*_: Any) -> None:
        began[0] = now()

    def stop(*_: Any) -> None:
        spent[0] += now() - began[0]

    reducers = encoder.reducers.values() if isinstance(encoder, BlockEncoder) else ()
    handles = [
        hook for r in reducers for hook in (r.register_forward_pre_hook(start), r.register_forward_hook(stop))
    ]
    try:
        yield spent
    finally:
        for handle in handles:
            handle.remove()


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


if __name__ == "__main__":
    answer(lambda given: profile(Subject.model_validate_json(given)).model_dump_json())
