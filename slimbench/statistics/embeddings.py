"""How alike two embeddings of the same slides are, and how many directions one of them uses.

All on rows [n, D] of n slides, in float64.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

from slimbench.statistics.metrics import FloatArray
from slimbench.statistics.threads import one_thread

Rows = NDArray[np.floating]


def cosines(a: Rows, b: Rows) -> FloatArray:
    """[n] cosine of row i of a [n, D] and row i of b [n, D]; 0 where one of them is zero."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    length = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    found: FloatArray = np.clip((a * b).sum(axis=1) / np.where(length > 0, length, 1), -1, 1)
    return found


def linear_cka(a: Rows, b: Rows) -> tuple[float, FloatArray]:
    """Linear centred kernel alignment of a [n, D] and b [n, E]: its value, and the pull [n] of each slide.

        ||B' A||^2 / (||A' A|| ||B' B||)      Frobenius norms, columns centred over slides

    (Kornblith et al. 2019, arXiv 1905.00414). NaN where all rows of a, or of b, are equal.

    A slide's pull is n times what a small extra weight on it adds to the value; pulls sum to 0, and the
    clustered error of value + pull is the linearised error of the value, which the patient bootstrap tends to.
    """
    u, v = (x.astype(np.float64) - x.mean(axis=0, dtype=np.float64) for x in (a, b))
    uv, uu, vv = u.T @ v, u.T @ u, v.T @ v
    scale = float(np.linalg.norm(uu) * np.linalg.norm(vv))
    if not scale > 0:
        return float("nan"), np.full(len(a), np.nan)
    value = min(float((uv**2).sum() / scale), 1.0)

    def part(x: FloatArray, cross: FloatArray, y: FloatArray) -> FloatArray:
        """[n] n times each slide's share of ||cross||^2, minus 1."""
        share: FloatArray = np.einsum("nd,nd->n", x @ cross, y) / (cross**2).sum()
        return len(x) * share - 1

    if not value:
        return 0.0, np.zeros(len(a))
    return value, value * (2 * part(u, uv, v) - part(u, uu, u) - part(v, vv, v))


@one_thread()
def neighbour_overlap(a: Rows, b: Rows, k: int) -> FloatArray:
    """[n] share of each slide's k nearest other slides (Euclidean) in a [n, D] that are also so in b [n, E].

    1 <= k < n; k / (n - 1) is what chance gives.
    """
    near_a, near_b = (
        NearestNeighbors(n_neighbors=k).fit(x).kneighbors(return_distance=False)
        for x in (a.astype(np.float64), b.astype(np.float64))
    )
    shared: FloatArray = (near_a[:, :, None] == near_b[:, None, :]).sum(axis=(1, 2)) / k
    return shared


def effective_rank(embeddings: Rows) -> float:
    """exp of the entropy of the normalised singular values of the centred rows [n, D] (Roy & Vetterli 2007)."""
    values = np.linalg.svd(embeddings - embeddings.mean(axis=0), compute_uv=False)
    share = values[values > 0] / values.sum() if values.any() else np.ones(1)
    return float(np.exp(-(share * np.log(share)).sum()))


def mean_pairwise_cosine(embeddings: Rows) -> float:
    """Mean cosine between two different rows of [n, D]."""
    length = np.linalg.norm(embeddings, axis=1, keepdims=True)
    unit = embeddings / np.where(length > 0, length, 1)
    n = len(unit)
    return float(((unit.sum(axis=0) ** 2).sum() - (unit**2).sum()) / (n * (n - 1)))
