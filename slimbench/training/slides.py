"""From a cohort to batches of slides on the right device."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from slimbench.cohorts.cohort import Cohort, Slide
from slimbench.encoder import SlideInput
from slimbench.seeds import generator, seed_of
from slimbench.text.tower import TextTower
from slimbench.tokens import Tokens


class SlideLoader:
    """Slides of a cohort as SlideInput, kept in memory up to `cache_bytes`, least recently used out first."""

    def __init__(self, cohort: Cohort, device: torch.device, cache_bytes: int = 4 << 30) -> None:
        self.cohort = cohort
        self.device = device
        self.cache_bytes = cache_bytes
        self._patient = {slide.id: slide.patient for slide in cohort.slides}
        self._cache: OrderedDict[str, SlideInput] = OrderedDict()
        self._bytes = 0

    def __call__(self, slide_id: str) -> SlideInput:
        if slide_id in self._cache:
            self._cache.move_to_end(slide_id)
            return self._cache[slide_id]
        made = self._read(slide_id)
        self._cache[slide_id] = made
        self._bytes += made.tokens.x.nbytes
        while self._bytes > self.cache_bytes and len(self._cache) > 1:
            self._bytes -= self._cache.popitem(last=False)[1].tokens.x.nbytes
        return made

    def _read(self, slide_id: str) -> SlideInput:
        patches = self.cohort.patches(slide_id)
        coords = None if patches.coords is None else torch.from_numpy(patches.coords)
        lesion = None if patches.lesion is None else torch.from_numpy(patches.lesion).to(self.device)
        tokens = Tokens.of(torch.from_numpy(patches.features).to(self.device), coords)
        return SlideInput(slide_id, tokens, lesion, self._patient[slide_id], patches.patch_size)


class PatchlessLoader(SlideLoader):
    """Slides for an encoder that reads no patches (SlideEncoder.reads); feature files stay closed.

    tower  each slide is one token, the tower's vector of its report, zeros where it has none; None: no token
    """

    def __init__(self, cohort: Cohort, device: torch.device, tower: TextTower | None) -> None:
        super().__init__(cohort, device)
        self._report = {slide.id: slide.report for slide in cohort.slides}
        self._nothing = torch.zeros(0, cohort.dim) if tower is None else torch.zeros(1, tower.dim)
        self._vectors: dict[str, Tensor] = {}
        if tower is not None:
            texts = sorted({report for report in self._report.values() if report})
            self._vectors = dict(zip(texts, torch.from_numpy(tower.embed(texts)), strict=True))

    def _read(self, slide_id: str) -> SlideInput:
        vector = self._vectors.get(self._report[slide_id] or "")
        x = self._nothing if vector is None else vector.unsqueeze(0)
        return SlideInput(slide_id, Tokens.of(x.to(self.device)), patient=self._patient[slide_id])


def training_batches(
    slides: Sequence[Slide], size: int, bucket: int, seed: int, epoch: int
) -> list[list[Slide]]:
    """One epoch of batches in a seeded random order.

    Within `bucket` batches slides are sorted by length, so that a batch holds slides of like length;
    which batches come first is random again. A last batch of fewer than `size` slides is left out when
    there is another one: a contrastive loss over a few slides is another loss.
    """
    draw = generator(seed_of("order", seed, epoch))
    order = torch.randperm(len(slides), generator=draw).tolist()
    batches: list[list[Slide]] = []
    for start in range(0, len(order), size * bucket):
        part = [slides[index] for index in order[start : start + size * bucket]]
        if bucket > 1:
            part.sort(key=lambda slide: slide.patches)
        batches += [part[first : first + size] for first in range(0, len(part), size)]
    full = [batch for batch in batches if len(batch) == size] or batches
    return [full[index] for index in torch.randperm(len(full), generator=draw).tolist()]


def evaluation_batches(slides: Sequence[Slide], tokens: int = 16_384) -> Iterator[list[Slide]]:
    """Batches of slides of like length, at most `tokens` patches each (or one slide)."""
    batch: list[Slide] = []
    for slide in sorted(slides, key=lambda slide: (slide.patches, slide.id)):
        if batch and sum(member.patches for member in batch) + slide.patches > tokens:
            yield batch
            batch = []
        batch.append(slide)
    if batch:
        yield batch


def thinned(slide: SlideInput, drop: float, seed: int) -> SlideInput:
    """The slide without a random share `drop` of its patches, in raster order."""
    n = len(slide.tokens)
    keep = max(1, round(n * (1 - drop)))
    if keep == n:
        return slide
    device = slide.tokens.device
    index = torch.randperm(n, generator=generator(seed, device), device=device)[:keep].sort().values
    tokens = Tokens.of(slide.tokens.x[index], slide.tokens.coords[index])
    return replace(slide, tokens=tokens, truth=None if slide.truth is None else slide.truth[index])
