"""What is said of kept sets, on cases worked out by hand, and against slow references."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from slimbench.statistics.kept import mean_depth, raster_bias, survival
from slimbench.statistics.overlap import chance_corrected, chance_union, intersection_over_union, nestedness
from slimbench.statistics.spread import (
    grid_step,
    mean_distance,
    mean_distance_of_random,
    morans_i,
    neighbours,
    pieces,
    pieces_kept,
)

LEFT = np.array([1, 255, 3, 255, 1, 2], np.uint8)  # of 4 blocks


def mask(size: int, *rows: int) -> np.ndarray:
    kept = np.zeros(size, bool)
    kept[list(rows)] = True
    return kept


# --- overlap ----------------------------------------------------------------------------------------------


def test_overlap_beyond_chance_by_hand() -> None:
    # 4 and 5 of 10 patches, 3 in both: chance gives 2, at most 4 are possible
    assert chance_corrected(3, 4, 5, 10) == pytest.approx((3 - 2) / (4 - 2))
    assert intersection_over_union(3, 4, 5) == pytest.approx(3 / 6)
    assert chance_union(4, 5, 10) == pytest.approx(2 / 7)
    assert nestedness(3, 4) == pytest.approx(3 / 4)


def test_overlap_is_one_for_a_set_within_the_other_and_negative_for_sets_that_avoid_each_other() -> None:
    assert chance_corrected(4, 4, 5, 10) == 1
    assert chance_corrected(0, 5, 5, 10) == -1


def test_overlap_of_random_sets_is_zero_on_average_where_plain_overlap_is_not() -> None:
    n, k = 7, 3
    first = mask(n, 0, 1, 2)
    both = np.array([first[list(rows)].sum() for rows in itertools.combinations(range(n), k)])
    assert chance_corrected(both, k, k, n).mean() == pytest.approx(0)
    assert intersection_over_union(both, k, k).mean() > 0.2


def test_overlap_is_undefined_where_only_one_is_possible() -> None:
    found = chance_corrected(np.array([0, 4, 10, 2]), np.array([0, 10, 10, 4]), np.array([4, 4, 10, 5]), 10)
    assert np.isnan(found[:3]).all() and found[3] == 0
    assert np.isnan(intersection_over_union(0, 0, 0)) and np.isnan(nestedness(0, 0))
    assert intersection_over_union(10, 10, 10) == 1


@pytest.mark.parametrize(("rate", "chance"), [(0.1, 0.05), (0.2, 0.11), (0.5, 0.33), (0.9, 0.82)])
def test_the_chance_level_of_plain_overlap_grows_with_the_share_kept(rate: float, chance: float) -> None:
    assert round(float(chance_union(round(1000 * rate), round(1000 * rate), 1000)), 2) == chance


# --- one slide --------------------------------------------------------------------------------------------


def test_the_mean_depth_counts_the_blocks_that_a_patch_goes_through() -> None:
    assert mean_depth(LEFT, 4) == pytest.approx((1 + 4 + 3 + 4 + 1 + 2) / 6)
    assert math.isnan(mean_depth(LEFT[:0], 4))


def test_survival_is_the_share_that_enters_each_block() -> None:
    assert survival(LEFT, 4).tolist() == pytest.approx([1, 4 / 6, 3 / 6, 2 / 6])
    assert survival(LEFT[[1, 2]], 4).tolist() == [1, 1, 1, 0.5]
    assert np.isnan(survival(LEFT[:0], 4)).all()
    assert survival(np.array([0, 255], np.uint8), 2).tolist() == [0.5, 0.5]  # left ahead of the first block


def test_raster_bias_is_zero_for_all_rows_and_for_the_middle_and_signed_for_the_ends() -> None:
    assert raster_bias(np.ones(7, bool)) == 0 and raster_bias(mask(7, 3)) == 0
    assert raster_bias(mask(10, 0, 1)) == pytest.approx((0.5 + 1.5) / 2 / 10 - 0.5)
    assert raster_bias(mask(10, 8, 9)) == pytest.approx(0.4)
    assert math.isnan(raster_bias(np.zeros(4, bool)))


# --- places -----------------------------------------------------------------------------------------------

#   x 0 1 2 . . 5 6      two pieces: 5 patches, which hang together by a corner, and 2
# y 0 a b . . . f g
#   1 . . c
#   2 . d e
COORDS = np.array([[0, 0], [1, 0], [5, 0], [6, 0], [2, 1], [1, 2], [2, 2]], np.float32)


def test_the_distance_to_the_nearest_kept_patch_by_hand() -> None:
    kept = mask(7, 0, 2)
    distances = [0, 1, 0, 1, math.sqrt(5), math.sqrt(5), math.sqrt(8)]
    assert mean_distance(COORDS, kept) == pytest.approx(sum(distances) / 7)
    assert math.isnan(mean_distance(COORDS, np.zeros(7, bool)))


def test_random_sets_are_of_the_same_size_and_the_mean_of_all_of_them_is_approached() -> None:
    every = [mean_distance(COORDS, mask(7, *rows)) for rows in itertools.combinations(range(7), 2)]
    assert mean_distance_of_random(COORDS, 2, 2000, 0) == pytest.approx(np.mean(every), rel=0.03)
    assert mean_distance_of_random(COORDS, 2, 3, 5) == mean_distance_of_random(COORDS, 2, 3, 5)
    assert mean_distance_of_random(COORDS, 7, 2, 0) == 0


def test_pieces_of_tissue_hang_together_also_by_a_corner() -> None:
    piece = pieces(7, neighbours(COORDS))
    assert piece.tolist() == [0, 0, 1, 1, 0, 0, 0]
    assert pieces_kept(piece, mask(7, 0, 6)) == 0.5 and pieces_kept(piece, mask(7, 0, 3)) == 1
    assert pieces_kept(piece, np.zeros(7, bool)) == 0


@pytest.mark.parametrize("change", [lambda c: c * 0.5 + 0.3, lambda c: c * 224 - 1e4, lambda c: c[:, ::-1]])
def test_pieces_are_the_same_in_any_unit_and_direction(change) -> None:
    assert pieces(7, neighbours(change(COORDS))).tolist() == [0, 0, 1, 1, 0, 0, 0]


def test_places_that_are_no_grid_have_a_step_too() -> None:
    shaken = COORDS + np.random.default_rng(0).uniform(-0.1, 0.1, COORDS.shape)
    assert pieces(7, neighbours(shaken)).tolist() == [0, 0, 1, 1, 0, 0, 0]
    doubled = np.concatenate((COORDS, COORDS))
    assert grid_step(doubled) == 1 and pieces(14, neighbours(doubled)).max() == 1
    one = np.zeros((1, 2))
    assert grid_step(one) == 1 and len(neighbours(one)) == 0 and pieces(1, neighbours(one)).tolist() == [0]


def test_morans_i_by_hand_and_against_the_double_sum() -> None:
    row = np.stack((np.arange(4), np.zeros(4)), axis=1)  # pairs 01 12 23, mean 1/2
    assert morans_i(mask(4, 0, 1), neighbours(row)) == pytest.approx(4 / 3 * (1 - 1 + 1) / 4)
    assert morans_i(mask(4, 0, 2), neighbours(row)) == pytest.approx(-1)
    kept = mask(7, 0, 1, 4, 2)
    pairs = neighbours(COORDS)
    weight = np.zeros((7, 7))
    weight[pairs[:, 0], pairs[:, 1]] = weight[pairs[:, 1], pairs[:, 0]] = 1
    x = kept - kept.mean()
    assert morans_i(kept, pairs) == pytest.approx(7 / weight.sum() * (x @ weight @ x) / (x @ x))


def test_morans_i_is_undefined_for_all_none_and_patches_that_nothing_touches() -> None:
    pairs = neighbours(COORDS)
    assert math.isnan(morans_i(np.ones(7, bool), pairs)) and math.isnan(morans_i(np.zeros(7, bool), pairs))
    assert math.isnan(morans_i(mask(2, 0), np.empty((0, 2), np.int64)))
