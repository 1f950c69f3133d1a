"""Ranks of the right answer in cross-modal retrieval, in expectation under random tie-breaking.

For each query: its best own score s, then G, how many wrong answers score higher, and E, how many score
the same up to rounding. The right answer then stands at rank 1 + G + u, u uniform on 0..E, whatever order
a sort would have given: a collapsed encoder gets exactly chance. Both directions are counted from one
tile of scores, so that 10^6 pairs need no N x M matrix and every product is used twice; counts of row
blocks add up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.stats import hypergeom
from torch import Tensor

from slimbench.errors import UsageError
from slimbench.statistics.metrics import FloatArray, IntArray

_ROWS, _COLUMNS = 1024, 2048  # scores of one product
_BAND = 32  # rows of them that stay in cache while they are counted
_EXACT = 20_000  # up to this many items scores are float64
_TOLERANCE = {torch.float64: 1e-12, torch.float32: 2.4e-7}  # rounding of a dot product of unit vectors


@dataclass(frozen=True)
class Ranks:
    """Of Q queries, all [Q] int64.

    better   G, wrong answers that score above the right one
    tied     E, wrong answers that score the same
    gallery  answers ranked: one right, the others wrong
    """

    better: IntArray
    tied: IntArray
    gallery: IntArray

    def expected(self, score: Callable[[NDArray[np.int64], int], FloatArray]) -> FloatArray:
        """[Q] mean of score(g, gallery) over g = G..G + E; `score` takes g = 0 .. gallery - 1 at once."""
        result = np.empty(len(self.better))
        for size in np.unique(self.gallery).tolist():
            of_size = self.gallery == size
            total = np.concatenate([[0.0], np.cumsum(score(np.arange(size), size))])
            first, last = self.better[of_size], (self.better + self.tied)[of_size]
            result[of_size] = (total[last + 1] - total[first]) / (last - first + 1)
        return result

    def rank(self) -> FloatArray:
        """[Q] expected rank, 1 the best."""
        return 1 + self.better + self.tied / 2

    def recall(self, k: int) -> FloatArray:
        """[Q] probability that the right answer is among the first k."""
        return np.clip((k - self.better) / (self.tied + 1), 0, 1)

    def reciprocal(self) -> FloatArray:
        """[Q] expected 1 / rank."""
        return self.expected(lambda better, _: 1 / (1.0 + better))

    def recall_in_gallery(self, k: int, size: int) -> FloatArray:
        """[Q] probability that the right answer is among the first k of a random gallery of `size`, drawn
        around it from the whole one: hypergeometric, hence exact, without drawing."""
        return self.expected(
            lambda better, gallery: hypergeom.cdf(k - 1, gallery - 1, better, min(size, gallery) - 1)
        )

    def chance(self) -> Ranks:
        """The same queries when every answer ties."""
        return Ranks(0 * self.better, self.gallery - 1, self.gallery)


def rank_pairs(
    images: NDArray[np.floating], texts: NDArray[np.floating], owner: IntArray
) -> tuple[Ranks, Ranks]:
    """Image-to-text ranks [N] and text-to-image ranks [M].

    images [N, P], texts [M, P] of unit norm, the M texts distinct; owner [N] the text of each image, every
    text owned. A text's query is answered by its best image; its other images are not in the gallery.
    """
    n, m = len(images), len(texts)
    dtype = torch.float64 if max(n, m) <= _EXACT else torch.float32
    x, y = torch.from_numpy(images).to(dtype), torch.from_numpy(texts).to(dtype)
    text_of = torch.from_numpy(owner)
    own = torch.cat([(a * y[b]).sum(1) for a, b in zip(x.split(_ROWS), text_of.split(_ROWS), strict=True)])
    best = torch.full((m,), -torch.inf, dtype=dtype).scatter_reduce_(0, text_of, own, "amax")
    above_row, above_column = _bounds(own).unsqueeze(2), _bounds(best).unsqueeze(1)
    row_counts, column_counts = (torch.zeros(2, count, dtype=torch.float64) for count in (n, m))
    tile, above = torch.empty(_ROWS * _COLUMNS, dtype=dtype), torch.empty(2 * _BAND * _COLUMNS, dtype=dtype)
    row_sums = torch.empty(2, _ROWS, dtype=dtype)
    column_sums = torch.empty(-(-_ROWS // _BAND), 2, _COLUMNS, dtype=dtype)
    for top in range(0, n, _ROWS):
        rows = slice(top, top + _ROWS)
        a, above_rows = x[rows], above_row[:, rows].split(_BAND, 1)
        for left in range(0, m, _COLUMNS):
            columns = slice(left, left + _COLUMNS)
            b, above_columns = y[columns], above_column[:, :, columns]
            scores = torch.mm(a, b.T, out=tile[: len(a) * len(b)].view(len(a), len(b)))
            mine = torch.nonzero((text_of[rows] >= left) & (text_of[rows] < left + _COLUMNS))[:, 0]
            scores[mine, text_of[rows][mine] - left] = -torch.inf
            buffer = above[: 2 * _BAND * len(b)].view(2, _BAND, len(b))
            of_columns = column_sums[:, :, : len(b)]
            for band, above_band, of_band, of_tile in zip(
                scores.split(_BAND),
                above_rows,
                row_sums[:, : len(a)].split(_BAND, 1),
                of_columns,
                strict=False,
            ):
                # Comparisons into floats and their sums are vectorised on the CPU; booleans are not.
                found = buffer[:, : len(band)]
                torch.sum(torch.gt(band, above_band, out=found), 2, out=of_band)
                torch.sum(torch.gt(band, above_columns, out=found), 1, out=of_tile)
            row_counts[:, rows] += row_sums[:, : len(a)]
            column_counts[:, columns] += of_columns[: len(above_rows)].sum(0)
    positives = np.bincount(owner, minlength=m)
    return _ranks(row_counts, np.full(n, m)), _ranks(column_counts, n - positives + 1)


def _bounds(own: Tensor) -> Tensor:
    """[2, Q]: above the first a score is better than the own one, above the second not worse."""
    tolerance = _TOLERANCE[own.dtype]
    return torch.stack([own + tolerance, own - tolerance])


def _ranks(counts: Tensor, gallery: NDArray[np.int64]) -> Ranks:
    """From counts [2, Q] above the two bounds."""
    better, not_worse = counts.long().numpy()
    return Ranks(better, not_worse - better, gallery.astype(np.int64))


def query_values(predictions: pd.DataFrame, name: str) -> FloatArray:
    """[Q] of "recall_at_K", "mrr" or "mean_rank" from the columns better, tied and gallery."""
    ranks = Ranks(*(predictions[column].to_numpy() for column in ("better", "tied", "gallery")))
    if name.startswith("recall_at_"):
        return ranks.recall(int(name.removeprefix("recall_at_")))
    if name == "mrr":
        return ranks.reciprocal()
    if name == "mean_rank":
        return ranks.rank()
    raise UsageError(f"{name!r} is no mean over queries; compare recall_at_K, mrr or mean_rank")
