"""Where on the slide the kept patches lie: how far from the others, on which pieces, clumped or strewn.

coords  [P, 2] positions of the patches, in any unit; gaps, fractions and repeated positions are no error
kept    [P] bool
pairs   [M, 2] neighbouring patches, each pair once (`neighbours`)
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from slimbench.statistics.metrics import FloatArray, IntArray

Coords = NDArray[np.floating]


def mean_distance(coords: Coords, kept: NDArray[np.bool_]) -> float:
    """Mean over all patches p of the distance to the nearest kept one, mean_p min_k |c_p - c_k|, in the unit
    of `coords`. NaN where none is kept."""
    if not kept.any():
        return float("nan")
    return float(cKDTree(coords[kept]).query(coords)[0].mean())


def mean_distance_of_random(coords: Coords, count: int, draws: int, seed: int) -> float:
    """The same, mean over `draws` sets of `count` patches drawn without replacement.

    A reducer's `mean_distance` over this is its coverage: 1 for a random set, less where patches are spread
    more evenly than at random, more where they are clumped and leave tissue far from any kept patch.
    """
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(draws):
        kept = np.zeros(len(coords), bool)
        kept[generator.choice(len(coords), count, replace=False)] = True
        found.append(mean_distance(coords, kept))
    return float(np.mean(found))


def grid_step(coords: Coords) -> float:
    """Distance between neighbouring patches: the median over patches of that to the nearest patch at another
    position; 1 if there is none."""
    places = np.unique(coords, axis=0)
    if len(places) < 2:
        return 1.0
    return float(np.median(cKDTree(places).query(places, k=2)[0][:, 1]))


def neighbours(coords: Coords) -> IntArray:
    """[M, 2] pairs of patches that touch, also at a corner: less than 1.5 grid steps apart in x and in y."""
    pairs: IntArray = cKDTree(coords).query_pairs(1.5 * grid_step(coords), p=np.inf, output_type="ndarray")
    return pairs


def pieces(patches: int, pairs: IntArray) -> IntArray:
    """[P] the piece of tissue that each patch lies on, counted from 0: connected components of `pairs`."""
    graph = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(patches, patches))
    labels: IntArray = connected_components(graph, directed=False)[1]
    return labels


def pieces_kept(piece: IntArray, kept: NDArray[np.bool_]) -> float:
    """Share of the pieces (labels [P] from 0) on which at least one patch is kept."""
    return len(np.unique(piece[kept])) / (int(piece.max()) + 1)


def morans_i(kept: NDArray[np.bool_], pairs: IntArray) -> float:
    """Moran's I (1950) of the kept mask x with weight 1 for neighbours:

        I = P / M  sum over pairs (x_i - m) (x_j - m)  /  sum over patches (x_i - m)^2,   m the mean of x

    About -1 / (P - 1) for a random set, towards 1 where kept patches lie together, negative where they avoid
    each other. NaN where all or none are kept, or no patches touch.
    """
    centred: FloatArray = kept - kept.mean()
    spread = float(np.square(centred).sum())
    if not len(pairs) or kept.all() or not kept.any():
        return float("nan")
    return len(kept) / len(pairs) * float((centred[pairs[:, 0]] * centred[pairs[:, 1]]).sum()) / spread
