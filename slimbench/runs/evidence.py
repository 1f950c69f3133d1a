"""What a trained encoder made of a cohort, computed when a task first asks for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from slimbench.cohorts.cohort import Cohort
from slimbench.encoder import Plan, SlideEncoder, SlideInput
from slimbench.task import Embeddings
from slimbench.text.tower import TextTower
from slimbench.trace import Trace
from slimbench.training.model import Aligned, TextSpace
from slimbench.training.slides import SlideLoader, evaluation_batches


class CellEvidence:
    """slimbench.task.Evidence of one cell; each split is encoded once.

    model  None for an encoder that was not aligned with text
    report called with (phase, slides done, slides in all)
    """

    def __init__(
        self,
        cohort: Cohort,
        encoder: SlideEncoder,
        model: Aligned | TextSpace | None,
        tower: TextTower | None,
        load: SlideLoader,
        plan: Plan,
        precision: str,
        report: Callable[[str, int, int], None],
    ) -> None:
        self.cohort = cohort
        self.encoder = encoder.eval()
        self.plan = plan
        self.precision = precision
        self.seed = plan.seed
        self.rate = plan.rate
        self._model = model
        self._tower = tower
        self._load = load
        self._report = report
        self._embeddings: dict[str, Embeddings] = {}
        self._traces: dict[str, dict[str, Trace]] = {}

    @property
    def logit_scale(self) -> float | None:
        return None if self._model is None else float(self._model.logit_scale.detach())

    def slide(self, slide_id: str) -> SlideInput:
        return self._load(slide_id)

    def embeddings(self, split: str) -> Embeddings:
        if split not in self._embeddings:
            self._encode(split, keep_traces=False)
        return self._embeddings[split]

    def traces(self, split: str) -> Mapping[str, Trace]:
        if split not in self._traces:
            self._encode(split, keep_traces=True)
        return self._traces[split]

    def texts(self, texts: Sequence[str]) -> NDArray[np.float32] | None:
        if self._model is None or self._tower is None:
            return None
        with torch.inference_mode():
            frozen = torch.from_numpy(self._tower.embed(texts)).to(self._load.device)
            return self._model.align_texts(frozen).cpu().numpy()

    def _encode(self, split: str, keep_traces: bool) -> None:
        """Encode a split and see where its patches went; the traces themselves, many times as large as what
        `left` says of them, are kept only for a task that asks."""
        slides = self.cohort.split(split)
        row = {slide.id: number for number, slide in enumerate(slides)}
        plan = replace(self.plan, trace=True)
        vectors: dict[int, Tensor] = {}
        counts: dict[int, tuple[int, ...]] = {}
        left: dict[int, NDArray[np.uint8]] = {}
        traces: dict[str, Trace] = {}
        with torch.inference_mode():
            for batch in evaluation_batches(slides):
                with torch.autocast(self._load.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                    encoded = self.encoder([self._load(slide.id) for slide in batch], plan)
                for number, slide in enumerate(batch):
                    vectors[row[slide.id]] = encoded.embedding[number].float()
                    counts[row[slide.id]] = encoded.counts[number]
                    if encoded.traces is not None:
                        left[row[slide.id]] = encoded.traces[number].left().numpy()
                        if keep_traces:
                            traces[slide.id] = encoded.traces[number]
                self._report(f"encode {split}", len(vectors), len(slides))
            stacked = (
                torch.stack([vectors[number] for number in range(len(slides))])
                if slides
                else torch.empty(0, self.encoder.dim)
            )
            aligned = None if self._model is None else self._model.align_slides(stacked).cpu().numpy()
        in_order = range(len(slides))
        self._embeddings[split] = Embeddings(
            slides,
            stacked.cpu().numpy(),
            aligned,
            tuple(counts[number] for number in in_order),
            tuple(left[number] for number in in_order) if len(left) == len(slides) else None,
        )
        if keep_traces:
            self._traces[split] = traces
