"""What is profiled: an encoder with a reducer, on slides that are made or come from a cohort."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict

from slimbench import registry
from slimbench.cohorts import open_cohort
from slimbench.encoder import Plan, SlideEncoder, SlideInput
from slimbench.errors import UsageError
from slimbench.measure.latency import matmul_peak
from slimbench.measure.passes import by_size
from slimbench.schedule import schedule
from slimbench.seeds import generator, seed_of
from slimbench.tokens import Tokens

START_UP, USUAL_SHARE = 5.0, 0.6  # of a guess: seconds until a process works, and what it reaches of the peak


class Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Subject(Strict):
    """What to profile; specs as on the command line.

    patches   of a slide made of noise on a square grid; None: slides of `cohort`
    dim       width of the made features
    slides    how many slides of the cohort, at equal steps of its size distribution
    repeats   timed passes over each slide
    """

    encoder: str
    reducer: str
    rate: float
    schedule: str = "geometric"
    precision: Literal["fp32", "bf16"] = "fp32"
    patches: int | None = None
    dim: int = 768
    cohort: str | None = None
    slides: int = 8
    repeats: int = 1
    seed: int = 0
    device: str = "cpu"

    def __str__(self) -> str:
        where = self.cohort or f"{self.patches:,} patches"
        own = "" if self.schedule == "geometric" else f" {self.schedule}"
        return f"{self.encoder} {self.reducer} {self.rate:g}{own} {self.precision} on {where}"

    @property
    def key(self) -> str:
        """16 hex digits that name its record."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]


def made_slide(patches: int, dim: int, device: torch.device | str = "cpu") -> SlideInput:
    """A slide of noise [patches, dim] on a square grid, in raster order; a tenth is diagnostic."""
    draw = generator(seed_of("made slide", patches, dim))
    side = max(1, round(patches**0.5))
    rows = torch.arange(patches)
    coords = torch.stack((rows % side, rows // side), dim=1).float()
    tokens = Tokens.of(torch.randn(patches, dim, generator=draw), coords)
    return SlideInput(f"{patches} patches", tokens.to(device), (rows % 10 == 0).to(device))


def slides_of(subject: Subject, device: torch.device) -> Iterator[SlideInput]:
    """The slides of a subject on `device`, smallest first."""
    if subject.cohort is None:
        assert subject.patches is not None
        yield made_slide(subject.patches, subject.dim, device)
        return
    cohort = open_cohort(subject.cohort)
    for slide in by_size(cohort.slides, subject.slides):
        patches = cohort.patches(slide.id)
        coords = None if patches.coords is None else torch.from_numpy(patches.coords)
        truth = None if patches.lesion is None else torch.from_numpy(patches.lesion).to(device)
        tokens = Tokens.of(torch.from_numpy(patches.features), coords)
        yield SlideInput(slide.id, tokens.to(device), truth, slide.patient, patches.patch_size)


def encoder_of(subject: Subject, dim: int) -> SlideEncoder:
    """Its encoder for features of width `dim`, untrained, with reducers in place."""
    torch.manual_seed(subject.seed)
    encoder: SlideEncoder = registry.encoders.build(subject.encoder, input_dim=dim)
    if encoder.reads != "patches":
        raise UsageError(f"{subject.encoder} reads no patches, so there is nothing to profile")
    encoder.place_reducers(
        lambda width: registry.reducers.build(subject.reducer, dim=width), schedule(subject.schedule)
    )
    return encoder


def first_patches(slide: SlideInput, patches: int) -> SlideInput:
    """The slide's first patches, or all."""
    rows = torch.arange(min(patches, len(slide.tokens)), device=slide.tokens.device)
    tokens = Tokens.of(slide.tokens.x[rows], slide.tokens.coords[rows])
    return replace(slide, tokens=tokens, truth=None if slide.truth is None else slide.truth[rows])


def expected_seconds(subject: Subject) -> float:
    """A guess at what `profile_in_fresh_process` takes for it, from FLOPs and one matrix product now."""
    device = torch.device(subject.device)
    if subject.cohort is not None:
        sizes = [slide.patches for slide in by_size(open_cohort(subject.cohort).slides, subject.slides)]
        dim = open_cohort(subject.cohort).dim
    else:
        assert subject.patches is not None
        sizes, dim = [subject.patches], subject.dim
    with torch.device("meta"):
        encoder = encoder_of(subject, dim)
    peak = _peak_now(device) * (torch.get_num_threads() if device.type == "cpu" else 1)
    total = 0
    for size in sizes:
        kept = encoder.budget(size, Plan(schedule(subject.schedule), subject.rate))
        counts: list[int] = []
        for block in range(encoder.depth):
            counts.append(kept.get(block, counts[-1] if counts else size))
        total += sum(operation.flops for operation in encoder.operations(size, counts) or ())
    return START_UP + total * (subject.repeats + 1) / (USUAL_SHARE * peak)


@functools.cache
def _peak_now(device: torch.device) -> float:
    return matmul_peak(torch.float32, device, repeats=1)
