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

    (Kornblith et al. 2019, arXiv 1905.00414). NaN where all rows of a, or of b, are equal. Biased upwards on few
    slides: two independent Gaussians of D columns have about D / (D + n), .93 at 54 slides of 768 columns, where
    `debiased_linear_cka` has 0.

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


def debiased_linear_cka(a: Rows, b: Rows) -> tuple[float, FloatArray]:
    """Linear CKA of a [n, D] and b [n, E] from unbiased HSICs, in [-1, 1], and the pull [n] of each slide.

        HSIC(a, b) / sqrt(HSIC(a, a) HSIC(b, b))

    with the estimator of Song et al. (2012, JMLR 13, HSIC_1), as Nguyen et al. (2021, arXiv 2010.15327) take it.
    NaN for n < 4, and where all slides of a, or of b, are equally far apart.

    A slide's pull is n - 1 times what the value loses without it, centred, so that the clustered error of value +
    pull is the jackknife's; a bootstrap would not do, as a slide drawn twice is like itself. NaN for n < 5, and
    for a slide without which the value is NaN.
    """
    x, y = (rows.astype(np.float64) - rows.mean(axis=0, dtype=np.float64) for rows in (a, b))
    xy, xx, yy = _hsic(x, y), _hsic(x, x), _hsic(y, y)
    defined = (xx > 0) & (yy > 0)
    scale = np.sqrt(np.where(defined, xx * yy, 1))
    whole, *without = np.where(defined, np.clip(xy / scale, -1, 1), np.nan)
    return float(whole), (len(x) - 1) * (np.mean(without) - without)


def _hsic(x: FloatArray, y: FloatArray) -> FloatArray:
    """[1 + n] HSIC_1 of centred x [n, D] and y [n, E], then the same without each row; NaN for want of rows.

    K and L are xx' and yy' without their diagonals s and t. Centring changes no HSIC and makes K 1 = -s, L 1 = -t,
    so that nothing of n x n is needed.
    """
    n, cross = len(x), x.T @ y
    s, t = (x**2).sum(axis=1), (y**2).sum(axis=1)
    st = s * t
    own = np.einsum("nd,nd->n", x @ cross, y) - st  # diagonal of K L
    around = 2 * st - x @ (x.T @ t) - y @ (y.T @ s)  # K L 1 + L K 1
    trace = own.sum() - np.append(0, 2 * own)
    ones_k, ones_l = (np.append(0, 2 * size) - size.sum() for size in (s, t))  # 1' K 1, 1' L 1
    ones_kl = st.sum() - np.append(0, st + around - own)  # 1' K L 1
    m = np.append(n, np.full(n, n - 1.0))
    m[m < 4] = np.nan
    found = trace + ones_k * ones_l / ((m - 1) * (m - 2)) - 2 * ones_kl / (m - 2)
    found[np.abs(found) <= 1e-12 * s.sum() * t.sum()] = 0  # rounding
    return np.asarray(found / (m * (m - 3)), np.float64)


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
