"""Retrieval ranks against a slow reference, and what ties, duplicates and collapse must give."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slimbench.statistics import retrieval
from slimbench.statistics.retrieval import Ranks, rank_pairs


def pairs(seed: int, n: int, m: int, dim: int = 8, noise: float = 1.0):
    rng = np.random.default_rng(seed)
    owner = np.concatenate([np.arange(m), rng.integers(0, m, n - m)])
    texts = rng.normal(size=(m, dim))
    images = texts[owner] + noise * rng.normal(size=(n, dim))
    return unit(images), unit(texts), owner


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def slow_ranks(images, texts, owner, tolerance=1e-12):
    """[(G, E, gallery)] of both directions, one query at a time."""
    found = [[], []]
    for i, image in enumerate(images):
        score, wrong = image @ texts[owner[i]], np.delete(texts @ image, owner[i])
        close = np.abs(wrong - score) <= tolerance
        found[0].append(((wrong > score)[~close].sum(), close.sum(), len(texts)))
    for j, text in enumerate(texts):
        scores, own = images @ text, owner == j
        close = np.abs(scores[~own] - scores[own].max()) <= tolerance
        better = (scores[~own] > scores[own].max())[~close].sum()
        found[1].append((better, close.sum(), (~own).sum() + 1))
    return found


@given(seed=st.integers(0, 10**6), m=st.integers(1, 40), extra=st.integers(0, 30))
@settings(max_examples=40, deadline=None)
def test_equal_to_a_slow_reference(seed, m, extra):
    images, texts, owner = pairs(seed, m + extra, m)
    for ours, reference in zip(
        rank_pairs(images, texts, owner), slow_ranks(images, texts, owner), strict=True
    ):
        assert list(zip(ours.better, ours.tied, ours.gallery, strict=True)) == reference


def test_tiles_and_bands_that_do_not_divide_the_pairs_change_nothing(monkeypatch):
    images, texts, owner = pairs(4, 53, 41)
    whole = rank_pairs(images, texts, owner)
    monkeypatch.setattr(retrieval, "_ROWS", 12)
    monkeypatch.setattr(retrieval, "_COLUMNS", 9)
    monkeypatch.setattr(retrieval, "_BAND", 5)
    for one, other in zip(whole, rank_pairs(images, texts, owner), strict=True):
        assert (one.better == other.better).all() and (one.tied == other.tied).all()


def test_float32_gives_the_ranks_of_float64(monkeypatch):
    images, texts, owner = pairs(5, 700, 600, dim=64, noise=2.0)
    exact = rank_pairs(images, texts, owner)
    monkeypatch.setattr(retrieval, "_EXACT", 0)
    for one, other in zip(exact, rank_pairs(images, texts, owner), strict=True):
        assert np.abs(one.rank() - other.rank()).mean() < 0.01
        assert (np.abs(one.rank() - other.rank()) <= 1).all()


def test_a_collapsed_encoder_gets_exactly_chance():
    n = 3_000
    same = np.full((n, 16), 0.25)
    for ranks in rank_pairs(same, same, np.arange(n)):
        assert (ranks.rank() == 1500.5).all()
        np.testing.assert_allclose(ranks.recall(1), 1 / n)
        np.testing.assert_allclose(ranks.recall(10), 10 / n)
        np.testing.assert_allclose(ranks.reciprocal(), np.mean(1 / np.arange(1, n + 1)))
        np.testing.assert_allclose(ranks.chance().rank(), ranks.rank())


def test_a_collapsed_encoder_gets_chance_in_float32_too(monkeypatch):
    monkeypatch.setattr(retrieval, "_EXACT", 0)
    rng = np.random.default_rng(0)
    vector = rng.normal(size=512)
    same = np.tile(vector / np.linalg.norm(vector), (300, 1)).astype(np.float32)
    for ranks in rank_pairs(same, same, np.arange(300)):
        assert (ranks.rank() == 150.5).all()


def test_expectation_is_the_mean_over_all_orders_of_the_tied():
    better, tied, gallery = 1, 3, 6
    ranks = Ranks(*(np.array([value]) for value in (better, tied, gallery)))
    places = [1 + better + order.index("right") for order in permutations(["right", "a", "b", "c"])]
    assert ranks.rank()[0] == np.mean(places)
    assert abs(ranks.reciprocal()[0] - np.mean([1 / place for place in places])) < 1e-12
    for k in range(1, 7):
        expected = np.mean([place <= k for place in places])
        assert abs(ranks.recall(k)[0] - expected) < 1e-12
        by_sum = ranks.expected(lambda better, _, k=k: (better < k).astype(float))
        assert abs(by_sum[0] - expected) < 1e-12


def test_other_images_of_a_text_are_not_in_its_gallery():
    images, texts, owner = np.eye(3)[[0, 0, 1, 2]], np.eye(3), np.array([0, 0, 1, 2])
    i2t, t2i = rank_pairs(images, texts, owner)
    assert (i2t.rank() == 1).all() and (t2i.rank() == 1).all()
    assert t2i.gallery.tolist() == [3, 4, 4] and t2i.tied.tolist() == [0, 0, 0]


def test_recall_beyond_the_gallery_is_one():
    images, texts, owner = pairs(1, 6, 6)
    assert all((ranks.recall(6) == 1).all() for ranks in rank_pairs(images, texts, owner))


def test_recall_in_a_smaller_gallery_is_the_mean_over_drawn_ones():
    images, texts, owner = pairs(8, 60, 60, noise=2.5)
    ranks = rank_pairs(images, texts, owner)[0]
    scores, rng, hits = images @ texts.T, np.random.default_rng(0), []
    for _ in range(400):
        for i in range(60):
            wrong = rng.choice(np.delete(np.arange(60), i), 19, replace=False)
            hits.append((scores[i, wrong] > scores[i, i]).sum() < 5)
    assert abs(ranks.recall_in_gallery(5, 20).mean() - np.mean(hits)) < 0.01
    np.testing.assert_allclose(ranks.recall_in_gallery(5, 60), ranks.recall(5))


@pytest.mark.parametrize("n", [7, 25])
def test_chance_of_the_metrics(n):
    ranks = Ranks(np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64), np.full(n, n)).chance()
    assert ranks.rank().mean() == (n + 1) / 2
    np.testing.assert_allclose(ranks.recall(5), 5 / n)
