"""The symmetric contrastive loss of CLIP (arXiv 2103.00020), aware of equal texts."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def contrastive_loss(slides: Tensor, texts: Tensor, scale: Tensor, text_ids: Tensor) -> Tensor:
    """Mean of both directions' cross-entropies over the batch: scalar.

    slides, texts  [B, P], not yet normalised
    scale          scalar logit scale
    text_ids       [B] int64; slides with equal ids carry the same report, and each is a right answer
                   for the others' text, shared evenly

    Computed in fp32.
    """
    logits = scale * F.normalize(slides.float(), dim=1) @ F.normalize(texts.float(), dim=1).T
    same = (text_ids.unsqueeze(0) == text_ids.unsqueeze(1)).float()
    target = same / same.sum(1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def text_ids(texts: list[str]) -> Tensor:
    """[len(texts)] int64, equal for equal texts."""
    first = {text: number for number, text in reversed(list(enumerate(texts)))}
    return torch.tensor([first[text] for text in texts])
