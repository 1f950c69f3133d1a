"""Slide features: the embeddings that another program made, as a row of the same tables.

Prov-GigaPath, TITAN, PRISM, CHIEF, anything that left one vector per slide: TRIDENT's `slide_features_<encoder>/`, a
folder of .h5 or .pt, a packed .npz, TITAN's pickle (read without running it).

    slimbench sweep --cohort my.toml --encoder slide-features:path=titan.pkl --encoder slim-base --reducer cropr

A card beside them (`titan.pkl.card.toml`, or `card.toml` in the folder) names the row and says what the vectors are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from slimbench.encoder import Encoded, Plan, SlideEncoder, SlideInput
from slimbench.encoders.slide_feature_files import open_features


class SlideFeatures(SlideEncoder):
    """Looks each slide up by its id, as tables are joined, or by its patient's; the embedding is [width of the file].

    path  a folder of feature files, or one file of many slides
    card  TOML with encoder, pooling, layer, coordinate_scale, precision, notes; default: the one beside the features
    """

    pretrained = True
    reads = "nothing"

    def __init__(self, input_dim: int, *, path: str = "", card: str | None = None) -> None:
        super().__init__()
        self.features = open_features(path, card)
        self.dim, self.depth = self.features.dim, 0
        self.names: dict[str, str] = {}

    @property
    def facts(self) -> Mapping[str, Any]:
        card = self.features.card
        return {"card": None if card is None else card.model_dump(exclude_none=True)}

    def look_at(self, slides: Sequence[SlideInput]) -> None:
        self.names = self.features.names([(slide.id, slide.patient) for slide in slides])

    def forward(self, slides: Sequence[SlideInput], plan: Plan) -> Encoded:
        new = [(slide.id, slide.patient) for slide in slides if slide.id not in self.names]
        names = self.names | self.features.names(new)
        rows = [torch.from_numpy(self.features.read(names[slide.id])) for slide in slides]
        return Encoded(torch.stack(rows).to(slides[0].tokens.device), tuple(() for _ in slides))
