"""The shapes of sets of unit squares, as few as they can be drawn with."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_SAME = 1e-3  # grid units; coordinates are fp32 quotients of pixels


def rectangles(corners: NDArray[np.floating]) -> NDArray[np.float64]:
    """[R, 4] x, y, width and height of the unit squares with upper left `corners` [n, 2], those that follow each
    other in a row put together.

    >>> rectangles(np.array([[0.0, 0], [1, 0], [3, 0], [0.5, 1]])).tolist()
    [[0.0, 0.0, 2.0, 1.0], [3.0, 0.0, 1.0, 1.0], [0.5, 1.0, 1.0, 1.0]]
    """
    if not len(corners):
        return np.empty((0, 4))
    x, y = corners.astype(np.float64).T
    order = np.lexsort((x, y))
    x, y = x[order], y[order]
    first = np.r_[True, (np.abs(np.diff(y)) > _SAME) | (np.abs(np.diff(x) - 1) > _SAME)]
    last = np.r_[first[1:], True]
    width = x[last] + 1 - x[first]
    return np.stack((x[first], y[first], width, np.ones_like(width)), axis=1)


def outline(corners: NDArray[np.floating]) -> NDArray[np.float64]:
    """[E, 2, 2] the edges of the unit squares with upper left `corners` [n, 2] that no two of them share."""
    edges = np.array([[[0, 0], [1, 0]], [[0, 1], [1, 1]], [[0, 0], [0, 1]], [[1, 0], [1, 1]]])
    drawn = (corners.astype(np.float64)[:, None, None] + edges).reshape(-1, 4)
    keys = np.rint(drawn / _SAME).astype(np.int64)
    _, place, count = np.unique(keys, axis=0, return_index=True, return_counts=True)
    alone: NDArray[np.float64] = drawn[np.sort(place[count == 1])].reshape(-1, 2, 2)
    return alone
