"""The embedded cohort: what its slides promise, and that it is the same on every run."""

import itertools
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from slimbench.cohorts import digit_slides as module
from slimbench.cohorts import open_cohort
from slimbench.cohorts.digit_slides import PLURALS, WORDS
from slimbench.cohorts.digits import CLASSES, digits
from slimbench.schedule import Geometric


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _cached(cache, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))


@pytest.fixture(scope="module")
def cohort(cache):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        return open_cohort("digits")


def test_splits_sizes_and_widths_are_as_documented(cohort):
    assert {name: len(cohort.split(name)) for name in ("train", "val", "test")} == module.SLIDES
    assert cohort.classes == tuple(sorted(CLASSES)) and len(cohort.classes) == 8
    for slide in cohort.slides:
        patches = cohort.patches(slide.id)
        assert patches.features.shape == (slide.patches, cohort.dim) and patches.features.dtype == np.float32
        assert patches.coords.shape == (slide.patches, 2) and patches.coords.dtype == np.float32
        assert 128 <= slide.patches < 224
        assert np.isfinite(patches.features).all()


def test_patches_stand_in_raster_order_on_distinct_cells(cohort):
    for slide in cohort.slides[::20]:
        x, y = cohort.patches(slide.id).coords.T
        place = y * module.GRID + x
        assert (np.diff(place) > 0).all()


def test_every_lesion_is_one_or_two_connected_clusters_in_the_reported_quarter(cohort):
    for slide in cohort.slides[::10]:
        patches = cohort.patches(slide.id)
        cells = {tuple(cell) for cell in patches.coords[patches.lesion].astype(int)}
        clusters = 0
        middle = np.median(patches.coords, axis=0)
        right, lower = np.mean(list(cells), axis=0) > middle
        assert f"{'lower' if lower else 'upper'} {'right' if right else 'left'}" in slide.report
        while cells:
            clusters += 1
            front = [cells.pop()]
            while front:
                x, y = front.pop()
                for near in ((x + 1, y), (x - 1, y), (x, y + 1), (x, y - 1)):
                    if near in cells:
                        cells.remove(near)
                        front.append(near)
        assert clusters == (2 if "multifocal" in slide.report else 1)


def test_a_tenth_of_the_patches_is_room_enough_for_every_lesion(cohort):
    schedule = Geometric()
    for slide in cohort.slides:
        kept = min(schedule.counts(slide.patches, 6, 0.9).values())
        assert cohort.patches(slide.id).lesion.sum() <= kept


def test_reports_name_the_diagnosis_and_prompts_share_their_words(cohort):
    plural = dict(zip(WORDS, PLURALS, strict=True))
    for slide in cohort.slides:
        assert f"diagnosis : {plural[slide.label]} ." in slide.report
    known = set(itertools.chain.from_iterable(re.findall(r"\w+", s.report) for s in cohort.split("train")))
    for name in cohort.classes:
        for template in cohort.prompts.templates:
            for word in cohort.prompts.names[name]:
                assert word in known
                assert word in template.replace("CLASSNAME", word)


def test_classes_fall_off_and_none_is_missing_from_a_split(cohort):
    for split in ("train", "val", "test"):
        counts = Counter(slide.label for slide in cohort.split(split))
        assert set(counts) == set(cohort.classes) and min(counts.values()) >= 5
    train = Counter(slide.label for slide in cohort.split("train"))
    assert train["two"] > 2 * train["nine"]


def test_splits_share_no_handwritten_digit():
    sources = module._split_sources(np.random.default_rng(0))
    assert sum(len(part.digit) for part in sources.values()) == 1797
    images = {split: {row.tobytes() for row in part.pixels} for split, part in sources.items()}
    for one, other in itertools.combinations(images.values(), 2):
        assert not one & other


def test_lesion_patches_can_be_told_from_the_others_by_their_features(cohort):
    """The features must hold the digit, or no reducer could find the lesion: nearest class mean on test."""
    train = [cohort.patches(slide.id) for slide in cohort.split("train")]
    labels = [slide.label for slide in cohort.split("train")]
    means = {
        name: np.concatenate(
            [p.features[p.lesion] for p, label in zip(train, labels, strict=True) if label == name]
        ).mean(axis=0)
        for name in cohort.classes
    }
    hits = []
    for slide in cohort.split("test"):
        patches = cohort.patches(slide.id)
        distance = [((patches.features[patches.lesion] - means[name]) ** 2).sum(1) for name in cohort.classes]
        hits += [cohort.classes[row] == slide.label for row in np.argmin(distance, axis=0)]
    assert np.mean(hits) > 0.85


@pytest.mark.parametrize("threads", ["1", "2"])
def test_another_process_builds_the_same_cohort(cohort, tmp_path, threads):
    code = "from slimbench.cohorts.digits import digits; print(digits().fingerprint)"
    env = os.environ | {
        "XDG_CACHE_HOME": str(tmp_path),
        "OMP_NUM_THREADS": threads,
        "PYTHONHASHSEED": threads,
    }
    printed = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    )
    assert printed.stdout.strip() == cohort.fingerprint


def test_another_seed_is_another_cohort_with_another_name(cohort):
    other = digits(seed=1)
    assert other.fingerprint != cohort.fingerprint and other.name != cohort.name


@pytest.mark.parametrize("damage", ["truncated", "garbage", "other code", "flipped"])
def test_a_damaged_or_outdated_cache_is_rebuilt(cohort, tmp_path, monkeypatch, damage):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(module, "SLIDES", {"train": 4, "val": 2, "test": 2})
    first = digits()
    path = tmp_path / "slimbench" / "digits-0.npz"
    whole = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "garbage":
        path.write_bytes(b"not a zip file")
    elif damage == "flipped":
        middle = len(whole) // 2
        path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    else:
        with np.load(path) as file:
            arrays = dict(file)
        np.savez(path, **arrays | {"code": np.array("old"), "features": arrays["features"] * 0})
    assert digits().fingerprint == first.fingerprint
    with np.load(path) as file:
        assert np.abs(file["features"]).max() > 0
    assert [entry.name for entry in path.parent.iterdir()] == ["digits-0.npz"]


def test_an_unwritable_cache_only_warns(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(module, "SLIDES", {"train": 4, "val": 2, "test": 2})
    with pytest.warns(UserWarning, match="not cached"):
        assert len(digits().slides) == 8


def test_a_cached_cohort_loads_without_scikit_learn(cohort):
    code = (
        "import sys; sys.modules['sklearn'] = None\n"
        "from slimbench.cohorts.digits import digits; print(digits().fingerprint)"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert printed.stdout.strip() == cohort.fingerprint
    assert Path(os.environ["XDG_CACHE_HOME"], "slimbench", "digits-0.npz").is_file()
