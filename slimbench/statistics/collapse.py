"""Do embeddings differ at all? Those of a wrongly fed slide encoder hardly do."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from slimbench.statistics.embeddings import Rows, effective_rank, mean_pairwise_cosine

COLLAPSED_COSINE = 0.99
COLLAPSED_RANK = 3.0


@dataclass(frozen=True)
class Collapse:
    """How much rows [n, D] differ; width is D."""

    mean_pairwise_cosine: float
    effective_rank: float
    width: int
    collapsed: bool

    def __str__(self) -> str:
        return (
            f"mean pairwise cosine {self.mean_pairwise_cosine:.3f}, effective rank {self.effective_rank:.1f} "
            f"of {self.width}"
        )


def collapse(embeddings: Rows) -> Collapse:
    """The collapse test on embeddings [n, D] of n >= 2 slides: a mean pairwise cosine above 0.99, or an effective
    rank below 3, or below half of the most that few distinct rows or a small D allow."""
    rows = embeddings.astype("float64")
    cosine, rank = mean_pairwise_cosine(rows), effective_rank(rows)
    most = min(len(np.unique(rows, axis=0)) - 1, rows.shape[1])
    low = rank < min(COLLAPSED_RANK, most / 2)
    return Collapse(cosine, rank, rows.shape[1], cosine > COLLAPSED_COSINE or low)
