"""One slide through an encoder, as every measurement of it runs it, and which slides those are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from slimbench.cohorts.cohort import Slide
from slimbench.encoder import Encoded, Plan, SlideEncoder, SlideInput


class Pass:
    """The encoder's forward pass on one slide at inference.

    precision  "fp32", or "bf16" under autocast
    """

    def __init__(self, encoder: SlideEncoder, plan: Plan, precision: str) -> None:
        self.encoder = encoder
        self.plan = plan
        self.dtype = torch.bfloat16 if precision == "bf16" else torch.float32

    def __call__(self, slide: SlideInput) -> Encoded:
        device, half = slide.tokens.device.type, self.dtype == torch.bfloat16
        with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=half):
            encoded: Encoded = self.encoder([slide], self.plan)
        return encoded


def by_size(slides: Sequence[Slide], number: int) -> list[Slide]:
    """`number` of the slides (or all), at equal steps of their size distribution, smallest first."""
    ordered = sorted(slides, key=lambda slide: (slide.patches, slide.id))
    steps = np.unique(np.linspace(0, len(ordered) - 1, number).round().astype(int))
    return [ordered[index] for index in steps]
