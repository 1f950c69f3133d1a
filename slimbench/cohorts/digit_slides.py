"""The generator behind the cohort `digits`: what stands on each slide, and the frozen patch encoder.

Everything is drawn from one numpy generator, so a seed is a cohort, on any machine. The hash of this
file is part of the cached cohort's key.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

SLIDES = {"train": 480, "val": 120, "test": 240}
SOURCES = {"train": 0.60, "val": 0.15, "test": 0.25}
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PLURALS = ("zeros", "ones", "twos", "threes", "fours", "fives", "sixes", "sevens", "eights", "nines")
DIAGNOSTIC = np.arange(2, 10)
REPORTS = tuple(
    f"{finding} diagnosis : {{digits}} ."
    for finding in (
        "sections contain a {pattern} lesion of {digits} in the {place} of the tissue , among {background} .",
        "{digits} are seen , {pattern} , {place} part . the tissue around holds mostly {background} .",
        "a slide showing {pattern} {digits} at the {place} , in a background of {background} .",
    )
)
GRID = 40
WIDTH = 48
NOISE = 0.08
TEXTURE, BLANK = 10, 11


def build(seed: int) -> dict[str, NDArray[Any]]:
    """All slides of all splits, T patches together, as arrays.

    slides    [S, 4] text: id, split, label, report
    offsets   [S + 1] slide i has patches offsets[i] to offsets[i + 1]
    features  [T, 48] float16, multiples of 1/256; coords [T, 2] int16 (x, y); lesion [T] bool
    """
    rng = np.random.default_rng(seed)
    sources = _split_sources(rng)
    encode = _patch_encoder(sources["train"], rng)
    rows, pixels, coords, lesion, offsets = [], [], [], [], [0]
    share = 0.85 ** np.arange(len(DIAGNOSTIC))
    for split, count in SLIDES.items():
        for number in range(count):
            slide = _Plan.draw(rng, int(rng.choice(DIAGNOSTIC, p=share / share.sum())))
            patches = sources[split].draw(rng, slide.content) + rng.normal(0, NOISE, (len(slide.content), 64))
            pixels.append(np.rint(np.clip(patches, 0, 1) * 255) / 255)
            coords.append(slide.coords)
            lesion.append(slide.lesion)
            offsets.append(offsets[-1] + len(slide.coords))
            rows.append((f"{split}-{number:03d}", split, WORDS[slide.digit], slide.report))
    return {
        "slides": np.array(rows),
        "features": encode(np.concatenate(pixels)),
        "coords": np.concatenate(coords),
        "lesion": np.concatenate(lesion),
        "offsets": np.array(offsets),
    }


@dataclass(frozen=True)
class _Sources:
    """Handwritten digits of one split: pixels [n, 64] in 0..1, digit [n]."""

    pixels: NDArray[np.float64]
    digit: NDArray[np.int64]

    def draw(self, rng: np.random.Generator, wanted: NDArray[np.int64]) -> NDArray[np.float64]:
        """A random source image for each entry of `wanted` [n]: a digit, TEXTURE or BLANK."""
        made = self.pixels[rng.integers(0, len(self.digit), len(wanted))]
        for digit in np.unique(wanted[wanted < TEXTURE]):
            at = np.flatnonzero(wanted == digit)
            made[at] = self.pixels[rng.choice(np.flatnonzero(self.digit == digit), len(at))]
        texture, blank = wanted == TEXTURE, wanted == BLANK
        made[texture] = rng.permuted(made[texture], axis=1)
        made[blank] = rng.uniform(0, 0.5, (blank.sum(), 1))
        return made


def _split_sources(rng: np.random.Generator) -> dict[str, _Sources]:
    from sklearn.datasets import load_digits

    images, digit = load_digits(return_X_y=True)
    order = rng.permutation(len(digit))
    cuts = np.rint(np.cumsum(list(SOURCES.values()))[:-1] * len(order)).astype(int)
    return {
        split: _Sources(images[part] / 16, digit[part])
        for split, part in zip(SOURCES, np.split(order, cuts), strict=True)
    }


def _patch_encoder(
    train: _Sources, rng: np.random.Generator
) -> Callable[[NDArray[np.float64]], NDArray[np.float16]]:
    """A frozen function from pixels [n, 64] to features [n, 48] float16.

    The hidden ReLU layer of a classifier (ten digits, texture, blank) fitted on noisy patches of the
    training split, standardised there, and rounded to 1/256 so that the last bits of a linear algebra
    library are not part of the data.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    copies, extra = 4, 200
    once = np.concatenate([train.digit, np.full(extra, TEXTURE), np.full(extra, BLANK)])
    content = np.tile(once, copies)
    pixels = np.clip(train.draw(rng, content) + rng.normal(0, NOISE * 1.5, (len(content), 64)), 0, 1)
    classifier = MLPClassifier((WIDTH,), max_iter=40, alpha=1e-3, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # forty epochs are all it needs
        classifier.fit(pixels, content)
    weight, bias = classifier.coefs_[0], classifier.intercepts_[0]
    hidden = np.maximum(pixels @ weight + bias, 0)
    mean, deviation = hidden.mean(0), hidden.std(0) + 1e-6

    def encode(pixels: NDArray[np.float64]) -> NDArray[np.float16]:
        features = (np.maximum(pixels @ weight + bias, 0) - mean) / deviation
        return (np.rint(np.clip(features, -7.9, 7.9) * 256) / 256).astype(np.float16)

    return encode


@dataclass(frozen=True)
class _Plan:
    """What stands where on one slide of N patches, in raster order.

    content [N] a digit, TEXTURE or BLANK; coords [N, 2] int16 (x, y); lesion [N] bool
    """

    digit: int
    content: NDArray[np.int64]
    coords: NDArray[np.int16]
    lesion: NDArray[np.bool_]
    report: str

    @classmethod
    def draw(cls, rng: np.random.Generator, digit: int) -> _Plan:
        n = int(rng.integers(128, 224))
        coords = _tissue(rng, n)
        multifocal = bool(rng.random() < 0.5)
        lesion, place = _lesion(rng, coords, 2 if multifocal else 1)
        background = int(rng.integers(0, 2))
        common = np.where(rng.random(n) < 0.7, background, 1 - background)
        kind = rng.random(n)
        content = np.where(kind < 0.30, BLANK, np.where(kind < 0.65, TEXTURE, common))
        free = np.flatnonzero(~_near(coords, lesion))
        decoys = rng.choice(free, int(rng.integers(1, 4)), replace=False)
        content[decoys] = rng.choice(np.setdiff1d(DIAGNOSTIC, digit), len(decoys))
        content[lesion] = digit
        report = REPORTS[rng.integers(0, len(REPORTS))].format(
            pattern="multifocal" if multifocal else "focal",
            digits=PLURALS[digit],
            place=place,
            background=PLURALS[background],
        )
        return cls(digit, content, coords, lesion, report)


def _tissue(rng: np.random.Generator, n: int) -> NDArray[np.int16]:
    """The n grid cells nearest to one or two centres, by a distance that wavers with the angle: [n, 2]."""
    y, x = np.divmod(np.arange(GRID * GRID), GRID)
    distance = np.full(GRID * GRID, np.inf)
    for centre_x, centre_y in rng.uniform(GRID * 0.35, GRID * 0.65, (int(rng.integers(1, 3)), 2)):
        angle = np.arctan2(y - centre_y, x - centre_x)
        waves = rng.normal(0, 0.12, 4) * np.cos(
            np.outer(angle, np.arange(1, 5)) + rng.uniform(0, 2 * np.pi, 4)
        )
        distance = np.minimum(distance, np.hypot(x - centre_x, y - centre_y) / np.exp(waves.sum(1)))
    cells = np.sort(np.argsort(distance + rng.normal(0, 0.3, len(distance)), kind="stable")[:n])
    return np.stack((x[cells], y[cells]), axis=1).astype(np.int16)


def _lesion(
    rng: np.random.Generator, coords: NDArray[np.int16], clusters: int
) -> tuple[NDArray[np.bool_], str]:
    """Which of the n patches are diagnostic, and in which quarter of the tissue.

    At most n / 13 patches in all: so many that even a keep rate of a tenth, rounded down after each
    of five reducers, can keep every one.
    """
    n = len(coords)
    right, lower = (coords > np.median(coords, axis=0)).T
    while True:
        corner = rng.integers(0, n)
        quarter = (right == right[corner]) & (lower == lower[corner])
        lesion = np.zeros(n, dtype=bool)
        for _ in range(clusters):
            size = min(int(rng.integers(4, 7)), n // (13 * clusters))
            free = quarter & ~_near(coords, lesion)
            grown = _grow(rng, coords, free, size)
            if grown is None:
                break
            lesion |= grown
        else:
            place = f"{'lower' if lower[corner] else 'upper'} {'right' if right[corner] else 'left'}"
            return lesion, place


def _grow(
    rng: np.random.Generator, coords: NDArray[np.int16], free: NDArray[np.bool_], size: int
) -> NDArray[np.bool_] | None:
    """A connected cluster of `size` free patches [n] bool, or None where there is no room for one."""
    if not free.any():
        return None
    cluster = np.zeros(len(coords), dtype=bool)
    cluster[rng.choice(np.flatnonzero(free))] = True
    while cluster.sum() < size:
        edge = np.flatnonzero(_near(coords, cluster) & free & ~cluster)
        if not len(edge):
            return None
        cluster[rng.choice(edge)] = True
    return cluster


def _near(coords: NDArray[np.int16], some: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The patches [n] that are among `some` or share an edge with one of them."""
    apart = np.abs(coords[:, None].astype(int) - coords[None, some]).sum(-1)
    return (apart <= 1).any(1)
