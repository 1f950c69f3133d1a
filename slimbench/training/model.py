"""A slide encoder and what ties it to text."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slimbench.encoder import Encoded, SlideEncoder
from slimbench.reducer import Reducer
from slimbench.training.contrastive import contrastive_loss
from slimbench.training.recipe import Recipe


class Aligned(nn.Module):
    """encoder -> slide_head -> shared space <- text_head <- frozen text embedding [text_dim].

    Each supervised reducer has a head of its own with its own scale: its summary is aligned with the
    same report (SLIM, section 3), and its text target carries no gradient.
    """

    def __init__(self, encoder: SlideEncoder, text_dim: int, recipe: Recipe) -> None:
        super().__init__()
        self.encoder = encoder
        self.slide_head = nn.Linear(encoder.dim, recipe.shared)
        self.text_head = nn.Linear(text_dim, recipe.shared)
        self.log_scale = nn.Parameter(torch.tensor(math.log(recipe.scale)))
        self.scale_max = recipe.scale_max
        supervised = [name for name, reducer in reducers_of(encoder) if reducer.supervised]
        self.summary_heads = nn.ModuleDict(
            {
                name: nn.Sequential(nn.LayerNorm(encoder.dim), nn.Linear(encoder.dim, recipe.shared))
                for name in supervised
            }
        )
        self.summary_log_scales = nn.ParameterDict(
            {name: nn.Parameter(torch.tensor(math.log(recipe.scale))) for name in supervised}
        )

    @property
    def logit_scale(self) -> Tensor:
        """The learned inverse temperature, bounded."""
        return self._bounded(self.log_scale)

    def loss(self, encoded: Encoded, text: Tensor, text_ids: Tensor) -> tuple[Tensor, Tensor]:
        """(total, alignment loss of the embedding alone); text [B, text_dim] frozen embeddings.

        The total adds the losses of all summaries and the reducers' own, unweighted, as the official
        Cropr does.
        """
        target = self.text_head(text)
        main = contrastive_loss(self.slide_head(encoded.embedding), target, self.logit_scale, text_ids)
        total = main
        for block, summary in encoded.summaries.items():
            name = str(block)
            scale = self._bounded(self.summary_log_scales[name])
            total = total + contrastive_loss(
                self.summary_heads[name](summary), target.detach(), scale, text_ids
            )
        return (total if encoded.loss is None else total + encoded.loss), main

    def align_slides(self, embedding: Tensor) -> Tensor:
        """[B, D] -> [B, P], L2-normalised."""
        return F.normalize(self.slide_head(embedding).float(), dim=1)

    def align_texts(self, text: Tensor) -> Tensor:
        """[B, text_dim] -> [B, P], L2-normalised."""
        return F.normalize(self.text_head(text).float(), dim=1)

    def _bounded(self, log_scale: Tensor) -> Tensor:
        return log_scale.exp().clamp(max=self.scale_max)


class TextSpace:
    """The text tower's own space, for embeddings that are its vectors: nothing is learned, cosines are as they are."""

    logit_scale = torch.ones(())

    def align_slides(self, embedding: Tensor) -> Tensor:
        """[B, text_dim] L2-normalised; a row of zeros stays."""
        return F.normalize(embedding.float(), dim=1)

    align_texts = align_slides


def reducers_of(encoder: SlideEncoder) -> list[tuple[str, Reducer]]:
    """(block ahead as text, reducer) of every reducer inside the encoder."""
    return [
        (name.rpartition(".")[2], module)
        for name, module in encoder.named_modules()
        if isinstance(module, Reducer)
    ]
