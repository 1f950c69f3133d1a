"""What `slimbench data` does: check, init, split, pack."""

import os
import pickle
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import slimbench
from slimbench.cohorts import open_cohort
from slimbench.cohorts.check import check
from slimbench.cohorts.cohort import InMemoryCohort, Patches, Slide
from slimbench.cohorts.init import init
from slimbench.cohorts.pack import pack, pack_files
from slimbench.cohorts.readers.features import find_files
from slimbench.cohorts.splits import SplitRule, make_splits, write_splits
from slimbench.cohorts.table import open_file
from slimbench.errors import CohortError, UsageError
from slimbench.runs.work import Watcher
from slimbench.statistics.collapse import collapse
from slimbench.statistics.embeddings import effective_rank, mean_pairwise_cosine

pytestmark = pytest.mark.usefixtures("own_cache")


def cohort_of(slides, features=None):
    rng = np.random.default_rng(0)
    features = features or {
        slide.id: Patches(rng.normal(size=(slide.patches, 4)).astype("f4")) for slide in slides
    }
    classes = tuple(sorted({slide.label for slide in slides if slide.label}))
    return InMemoryCohort("test", tuple(slides), classes, 4, "report", "x", features)


def slides_of(per_class=12, classes=("A", "B"), splits=("train", "val", "test")):
    return [
        Slide(f"{split}-{name}-{row}", f"{split}-{name}-{row}", split, 5, name, site=f"s{row % 3}-{split}")
        for split in splits
        for name in classes
        for row in range(per_class)
    ]


def subjects(findings, severity=None):
    return {found.subject for found in findings if severity in (None, found.severity)}


@pytest.fixture
def folder(tmp_path, write_trident):
    """A cohort of 24 slides in TRIDENT's layout."""
    rows = ["slide_id,case_id,OncoTreeCode,split"]
    for number in range(24):
        split = ("train", "train", "val", "test")[number % 4]
        write_trident(
            tmp_path / "20x_512px_0px_overlap" / "features_conch_v15", f"s{number}", dtype="float16"
        )
        rows.append(f"s{number},p{number},{'AB'[number // 4 % 2]},{split}")
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "cohort.toml").write_text(init(tmp_path))
    return tmp_path


@pytest.fixture
def patch_folder(folder):
    return folder / "20x_512px_0px_overlap" / "features_conch_v15"


# check


def test_a_clean_cohort_has_neither_errors_nor_warnings():
    found = check(cohort_of(slides_of()))
    assert {each.severity for each in found} <= {"info"}


def test_digits_have_only_what_is_meant():
    found = check("digits")
    assert not subjects(found, "error")
    assert subjects(found) <= {"classes", "reports", "defaults"}


def test_leakage_of_a_patient_is_an_error():
    slides = slides_of()
    slides.append(Slide("again", slides[0].patient, "test", 5, "A"))
    (error,) = [each for each in check(cohort_of(slides)) if each.severity == "error"]
    assert error.subject == "leakage" and slides[0].patient in error.message


def test_shared_sites_are_a_warning_with_their_number():
    slides = [Slide(s.id, s.patient, s.split, 5, s.label, site=s.site[:2]) for s in slides_of()]
    warnings = [each for each in check(cohort_of(slides)) if each.subject == "sites"]
    assert [each.severity for each in warnings] == ["warning", "warning"]
    assert "3 of the 3 sites of test are in train too" in warnings[1].message


def test_small_absent_and_untrained_classes_are_named():
    slides = [*slides_of(), Slide("rare", "rare", "test", 5, "C")]
    messages = " ".join(each.message for each in check(cohort_of(slides)))
    assert "class C has test slides and none in train" in messages
    assert "class C has 1 test slides, under 10" in messages


@pytest.mark.parametrize(("gone", "severity"), [("train", "error"), ("val", "warning"), ("test", "error")])
def test_a_missing_split_is_named(gone, severity):
    splits = [split for split in ("train", "val", "test") if split != gone]
    found = check(cohort_of(slides_of(splits=splits)))
    assert [each.severity for each in found if each.subject == "splits"] == [severity]


def test_equal_features_are_an_error_across_splits_and_a_warning_within():
    slides = slides_of()
    features = {
        s.id: Patches(np.random.default_rng(row).normal(size=(5, 4)).astype("f4"))
        for row, s in enumerate(slides)
    }
    features["train-A-1"] = features["train-A-0"]
    found = [each for each in check(cohort_of(slides, features)) if each.subject == "duplicate features"]
    assert [each.severity for each in found] == ["warning"]
    features["test-A-1"] = features["train-A-0"]
    found = [each for each in check(cohort_of(slides, features)) if each.subject == "duplicate features"]
    assert [each.severity for each in found] == ["error"]


def test_test_reports_that_stand_in_train_are_counted():
    slides = [Slide(s.id, s.patient, s.split, 5, s.label, report=f"report {s.label}") for s in slides_of()]
    (found,) = [each for each in check(cohort_of(slides)) if each.subject == "reports"]
    assert found.count == 24 and "24 of 24 test reports" in found.message


def test_nan_is_found_by_reading_and_all_bad_slides_are_counted(folder, patch_folder, write_trident):
    rows = np.zeros((3, 8), np.float32)
    rows[1] = np.nan
    for slide in ("s3", "s5"):
        write_trident(patch_folder, slide, features=rows)
    seen = []
    found = check(folder / "cohort.toml", advance=lambda done, total: seen.append((done, total)))
    (error,) = [each for each in found if each.severity == "error"]
    assert error.subject == "features" and error.count == 2 and set(error.examples) == {"s3", "s5"}
    assert "in row 1" in error.message and seen[-1] == (24, 24)
    assert "features" not in subjects(check(folder / "cohort.toml", read=False))


def test_mixed_patch_sizes_and_encoders_are_an_error(folder, patch_folder, write_trident):
    write_trident(patch_folder, "s1", patch_size=256, edge=512)
    write_trident(patch_folder, "s2", encoder="uni_v1")
    (error,) = [each for each in check(folder / "cohort.toml") if each.severity == "error"]
    assert error.subject == "mixed patches" and error.count == 2
    assert "20x 256px overlap 0 conch_v15" in error.message or "uni_v1" in error.message


def test_another_level0_edge_is_not_another_patch_size(folder, patch_folder, write_trident):
    """40x and 20x scans of one cohort differ in it, and are tiled alike."""
    write_trident(patch_folder, "s1", edge=512)
    assert not subjects(check(folder / "cohort.toml"), "error")


def test_mixed_coordinates_are_a_warning(folder, patch_folder):
    with h5py.File(patch_folder / "s1.h5", "r+") as file:
        del file["coords"]
    (warning,) = [each for each in check(folder / "cohort.toml") if each.subject == "coordinates"]
    assert warning.severity == "warning" and warning.examples == ("s1",)


def test_everything_wrong_in_a_file_is_found_at_once(folder, patch_folder):
    (patch_folder / "s7.h5").unlink()
    (patch_folder / "s8.h5").write_bytes(b"no")
    text = (folder / "labels.csv").read_text()
    (folder / "labels.csv").write_text(text.replace("s1,p1,", "s1,p2,").replace("s9,p9,A", "s9,p9,a"))
    errors = subjects(check(folder / "cohort.toml"), "error")
    assert errors == {"leakage", "labels", "missing features", "unreadable features"}


def test_joins_and_drops_are_told(folder, patch_folder, write_trident):
    write_trident(patch_folder, "s0", features=np.empty((0, 8), np.float32))
    messages = [each.message for each in check(folder / "cohort.toml") if each.severity == "info"]
    assert "1 slides dropped: empty" in messages
    assert "features: 24 of 24 slides matched" in messages
    told = "a sweep uses encoder slim-base, text hf, recipe paper and runs linear-probe, efficiency; not zero-shot"
    assert any(message.startswith(told) for message in messages)


def test_collapsed_slide_features_are_a_warning():
    slides = [Slide(s.id, s.patient, s.split, 1, s.label) for s in slides_of()]
    rng = np.random.default_rng(0)
    apart = {s.id: Patches(rng.normal(size=(1, 16)).astype("f4")) for s in slides}
    alike = {s.id: Patches((1 + 0.01 * rng.normal(size=(1, 16))).astype("f4")) for s in slides}
    line = {s.id: Patches(np.outer(rng.normal(size=1), np.arange(16)).astype("f4")) for s in slides}
    for features, severity in ((apart, "info"), (alike, "warning"), (line, "warning")):
        (found,) = [each for each in check(cohort_of(slides, features)) if each.subject == "collapse"]
        assert found.severity == severity


def test_few_different_slides_that_differ_very_much_are_not_collapsed():
    rng = np.random.default_rng(1)
    assert not collapse(np.repeat(np.eye(8)[:3], (40, 20, 20), axis=0)).collapsed
    for n, width in ((2, 64), (3, 64), (4, 64), (200, 2), (200, 3)):
        assert not collapse(rng.normal(size=(n, width))).collapsed, (n, width)
    for n in (4, 5, 200):
        assert collapse(np.outer(rng.normal(size=n), np.arange(64.0))).collapsed, n


def test_effective_rank_and_cosine_on_cases_worked_out_by_hand():
    assert effective_rank(np.concatenate([np.eye(4), -np.eye(4)])) == pytest.approx(4)
    assert effective_rank(np.array([[1.0, 0], [-1, 0]])) == pytest.approx(1)
    assert effective_rank(np.ones((3, 2))) == pytest.approx(1)
    assert mean_pairwise_cosine(np.eye(3)) == pytest.approx(0)
    assert mean_pairwise_cosine(np.array([[1.0, 0], [2, 0], [0, 3]])) == pytest.approx(1 / 3)


# init


def test_init_writes_a_file_that_opens(folder):
    cohort = open_cohort(str(folder / "cohort.toml"))
    assert len(cohort.slides) == 24 and cohort.classes == ("A", "B") and cohort.name == folder.name
    assert {slide.patient for slide in cohort.slides} == {f"p{number}" for number in range(24)}


def test_init_finds_reports_task_file_and_split_tables(folder, write_trident):
    lines = (folder / "labels.csv").read_text().splitlines()
    (folder / "labels.csv").unlink()
    for split in ("train", "val", "test"):
        rows = [line.rpartition(",")[0] for line in lines if line.endswith(split)]
        (folder / f"ot_{split}.csv").write_text("\n".join([lines[0].rpartition(",")[0], *rows]) + "\n")
    texts = "\n".join(
        f's{row},"a long report, of forty characters or more, on slide {row}"' for row in range(24)
    )
    (folder / "texts.csv").write_text(f"slide,report\n{texts}\n")
    (folder / "task.yaml").write_text("label_dict: {B: 0, A: 1}\nprompts: {A: [a], B: [b]}\n")
    write_trident(folder / "20x_512px_0px_overlap" / "slide_features_titan", "s0")
    text = init(folder)
    (folder / "cohort.toml").write_text(text)
    cohort = open_cohort(str(folder / "cohort.toml"))
    assert {slide.split for slide in cohort.slides} == {"train", "val", "test"}
    assert cohort.slides[0].report.startswith("a long report") and cohort.classes == ("B", "A")
    assert cohort.prompts.names["A"] == ("a",)
    assert "# features = " in text and "slide_features_titan" in text


def test_init_takes_the_label_that_a_task_file_names(tmp_path, write_trident):
    rows = ["case_id\tslide_id\tlabel\ther2\tfold_0"]
    for number in range(6):
        write_trident(tmp_path / "features", f"s{number}")
        rows.append(f"p{number}\ts{number}\tx{number}\t{number % 2}\t{('train', 'test')[number // 4]}")
    (tmp_path / "k=all.tsv").write_text("\n".join(rows) + "\n")
    (tmp_path / "config.yaml").write_text("task_col: her2\nlabel_dict: {0: negative, 1: positive}\n")
    (tmp_path / "cohort.toml").write_text(init(tmp_path))
    cohort = open_cohort(str(tmp_path / "cohort.toml"))
    assert cohort.classes == ("negative", "positive")
    assert [slide.label for slide in cohort.split("test")] == ["negative", "positive"]


def test_init_without_splits_leads_to_making_them(folder):
    text = (folder / "labels.csv").read_text()
    (folder / "labels.csv").write_text(
        "\n".join(line.rpartition(",")[0] for line in text.splitlines()) + "\n"
    )
    (folder / "cohort.toml").write_text(init(folder))
    slides = open_file(folder / "cohort.toml", splits=False).cohort.slides
    rule = SplitRule(fractions=(0.5, 0.25, 0.25), minimum=1)
    write_splits(folder / "splits.csv", make_splits(slides, rule), rule)
    cohort = open_cohort(str(folder / "cohort.toml"))
    assert Counter(slide.split for slide in cohort.slides) == {"train": 12, "val": 6, "test": 6}


def test_init_tells_patch_files_and_files_of_many_slides_in_one_folder_apart(
    tmp_path, write_trident, monkeypatch
):
    for slide in ("s0", "s1", "s2"):
        write_trident(tmp_path / "my study", slide)
    titan = {"filenames": ["s0", "s1", "s2", "s3"], "embeddings": np.eye(4, dtype=np.float32)}
    for name in ("titan.pkl", "chief.pkl"):
        (tmp_path / "my study" / name).write_bytes(pickle.dumps(titan))
    rows = "\n".join(f"s{n},{'AB'[n % 2]},{('train', 'test')[n // 2]}" for n in range(3))
    (tmp_path / "my study" / "labels.csv").write_text(f"slide_id,label,split\n{rows}\n")
    monkeypatch.chdir(tmp_path)
    text = init(Path("my study"))
    Path("my study/cohort.toml").write_text(text)
    cohort = open_cohort("my study/cohort.toml")
    assert [slide.patches for slide in cohort.slides] == [12] * 3
    rows = [line.partition("--encoder ")[2] for line in text.splitlines() if "--encoder" in line]
    for row, name in zip(rows, ("chief.pkl", "titan.pkl"), strict=True):
        (spec,) = shlex.split(row)
        assert spec == f"slide-features:path=my study/{name}"


def test_init_of_nothing_says_what_is_missing(tmp_path, write_trident):
    with pytest.raises(CohortError, match="no feature files"):
        init(tmp_path)
    write_trident(tmp_path / "features", "s")
    (tmp_path / "other.csv").write_text("slide_id,label\nz,1\n")
    with pytest.raises(
        CohortError, match=r"1 slides with features, and no .csv, .tsv or .json table in it names one"
    ):
        init(tmp_path)


# splits


@st.composite
def studies(draw):
    """Slides of up to 60 patients, one to three slides each, five sites, two to four classes."""
    patients = draw(st.integers(20, 60))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    slides = []
    for patient in range(patients):
        label, site = f"c{rng.integers(0, 3)}", f"site{rng.integers(0, 5)}"
        for number in range(rng.integers(1, 4)):
            slides.append(Slide(f"s{patient}-{number}", f"p{patient}", "", 5, label, site=site))
    return slides


@settings(max_examples=40, deadline=None)
@given(studies(), st.integers(0, 3))
def test_made_splits_share_no_patient_and_lose_no_slide(slides, seed):
    rule = SplitRule(fractions=(0.6, 0.2, 0.2), minimum=1, seed=seed)
    splits = make_splits(slides, rule)
    assert splits == make_splits(slides[::-1], rule)
    assert set(splits) == {slide.id for slide in slides}
    by_patient = defaultdict(set)
    for slide in slides:
        by_patient[slide.patient].add(splits[slide.id])
    assert all(len(seen) == 1 for seen in by_patient.values())


def test_made_splits_are_stratified():
    slides = [Slide(f"s{row}", f"p{row}", "", 5, "AAAAAAABBC"[row % 10]) for row in range(1000)]
    splits = make_splits(slides, SplitRule(seed=4))
    for name, total in (("A", 700), ("B", 200), ("C", 100)):
        counts = Counter(splits[slide.id] for slide in slides if slide.label == name)
        for split, fraction in (("train", 0.8), ("val", 0.1), ("test", 0.1)):
            assert abs(counts[split] - fraction * total) <= 1


def test_another_seed_deals_other_patients():
    slides = [Slide(f"s{row}", f"p{row}", "", 5, "A") for row in range(100)]
    assert make_splits(slides, SplitRule(seed=0)) != make_splits(slides, SplitRule(seed=1))


def test_small_classes_are_left_out_before_splitting():
    slides = [Slide(f"s{row}", f"p{row}", "", 5, "A" if row < 50 else "B") for row in range(59)]
    assert set(make_splits(slides, SplitRule(minimum=10))) == {f"s{row}" for row in range(50)}
    assert len(make_splits(slides, SplitRule(minimum=9))) == 59


def test_site_disjoint_splits_share_no_site():
    slides = [
        Slide(f"s{row}", f"p{row // 2}", "", 5, "AB"[row % 2], site=f"site{row // 2 % 20}")
        for row in range(400)
    ]
    splits = make_splits(slides, SplitRule(by="site", fractions=(0.6, 0.2, 0.2)))
    by_site = defaultdict(set)
    for slide in slides:
        by_site[slide.site].add(splits[slide.id])
    assert all(len(seen) == 1 for seen in by_site.values()) and set(splits.values()) == {
        "train",
        "val",
        "test",
    }


@pytest.mark.parametrize(
    ("slides", "rule", "pattern"),
    [
        ([Slide("a", "p", "", 5, "A")], SplitRule(minimum=1), "val gets no slide"),
        ([Slide("a", "p", "", 5, "A")], SplitRule(), "no class has 10 slides"),
        ([Slide("a", "p", "", 5, "A")], SplitRule(minimum=1, by="site"), "slide a has no site"),
        (
            [Slide("a", "p", "", 5, "A", site="x"), Slide("b", "p", "", 5, "A", site="y")],
            SplitRule(minimum=1, by="site"),
            "patient p has slides of two sites",
        ),
    ],
)
def test_splits_that_cannot_be_made_are_one_line(slides, rule, pattern):
    with pytest.raises(CohortError, match=pattern):
        make_splits(slides, rule)


def test_fractions_must_add_up():
    with pytest.raises(UsageError, match="add up to 1"):
        SplitRule(fractions=(0.8, 0.1, 0.2))


# a sweep


def test_a_sweep_tells_of_files_that_it_opens_for_the_first_time(folder, tmp_path):
    told = []

    class Look(Watcher):
        def opening(self, done, total):
            told.append((done, total))

    asked = {"cohort": str(folder / "cohort.toml"), "text": "tfidf", "encoders": "mean-pool", "dry_run": True}
    for _ in range(2):
        slimbench.sweep("none", 0, out=tmp_path / "out", watch=Look(), **asked)
    assert told == [(done, 24) for done in range(1, 25)]


# pack


@pytest.fixture
def packed(folder):
    text = (folder / "cohort.toml").read_text()
    (folder / "cohort.toml").write_text(f'packed = "packed"\n{text}')
    return folder


def test_packed_copies_are_read_and_nothing_else_changes(packed):
    before = open_cohort(str(packed / "cohort.toml"))
    seen = []
    done = pack(packed / "cohort.toml", workers=1, advance=lambda done, total: seen.append((done, total)))
    assert (done.written, done.current) == (24, 0) and seen[-1] == (24, 24) and done.bytes > 0
    after = open_cohort(str(packed / "cohort.toml"))
    assert after.fingerprint == before.fingerprint and after.slides == before.slides
    for slide in after.slides:
        assert after.files[slide.id][0].format == "packed" and before.files[slide.id][0].format == "trident"
        one, other = after.patches(slide.id), before.patches(slide.id)
        np.testing.assert_array_equal(one.features, other.features)
        np.testing.assert_array_equal(one.coords, other.coords)
    again = pack(packed / "cohort.toml", workers=1)
    assert (again.written, again.current) == (0, 24)


def test_a_changed_source_is_read_instead_of_its_old_copy(packed, patch_folder, write_trident):
    pack(packed / "cohort.toml", workers=1)
    rows = write_trident(patch_folder, "s5", features=np.ones((4, 8), np.float32))
    cohort = open_cohort(str(packed / "cohort.toml"))
    np.testing.assert_array_equal(cohort.patches("s5").features, rows)
    (warning,) = [each for each in check(packed / "cohort.toml") if each.subject == "packed"]
    assert warning.severity == "warning" and warning.examples == ("s5",)
    assert pack(packed / "cohort.toml", workers=1).written == 1
    np.testing.assert_array_equal(open_cohort(str(packed / "cohort.toml")).patches("s5").features, rows)


@pytest.mark.parametrize("number", [None, 1])
def test_a_copy_of_another_format_is_not_read_and_packed_again(packed, number):
    """Copies from before the patch size was kept hold the same features, and no number."""
    pack(packed / "cohort.toml", workers=1)
    with h5py.File(packed / "packed" / "s5.h5", "a") as file:
        del file.attrs["slimbench_format"], file.attrs["patch_size"]
        if number is not None:
            file.attrs["slimbench_format"] = number
    cohort = open_cohort(str(packed / "cohort.toml"))
    assert cohort.files["s5"][0].format == "trident" and cohort.files["s6"][0].format == "packed"
    assert pack(packed / "cohort.toml", workers=1).written == 1
    cohort = open_cohort(str(packed / "cohort.toml"))
    assert cohort.files["s5"][0].format == "packed" and cohort.patches("s5").patch_size is not None


def test_a_damaged_copy_is_found_and_packed_again(packed):
    pack(packed / "cohort.toml", workers=1)
    path = packed / "packed" / "s5.h5"
    path.write_bytes(path.read_bytes()[:100])
    cohort = open_cohort(str(packed / "cohort.toml"))
    assert cohort.files["s5"][0].format == "trident"
    assert pack(packed / "cohort.toml", workers=1).written == 1


def test_slides_with_nan_are_not_packed_and_the_others_are(packed, patch_folder, write_trident):
    rows = np.full((3, 8), np.nan, np.float32)
    for slide in ("s3", "s5"):
        write_trident(patch_folder, slide, features=rows)
    with pytest.raises(CohortError, match=r"NaN .* \(2 slides in all; the others are packed\)"):
        pack(packed / "cohort.toml", workers=1)
    assert len(list((packed / "packed").glob("*.h5"))) == 22


def test_packing_without_a_folder_says_how_to_name_one(folder):
    with pytest.raises(CohortError, match=r"names no folder for packed copies"):
        pack(folder / "cohort.toml")
    assert pack(folder / "cohort.toml", folder / "elsewhere", workers=1).written == 24


def test_files_of_many_slides_are_not_packed(tmp_path):
    np.savez(
        tmp_path / "x.npz", features=np.ones((2, 3)), offsets=np.arange(3), slide_id=np.array(["a", "b"])
    )
    (tmp_path / "slides.csv").write_text("slide_id,case_id,split\na,p,train\nb,q,test\n")
    (tmp_path / "cohort.toml").write_text(
        'features = "x.npz"\npacked = "p"\n[slides]\ntable = "slides.csv"\n'
    )
    with pytest.raises(CohortError, match="lies in one file with others"):
        pack(tmp_path / "cohort.toml")


def test_a_slide_cannot_be_packed_outside_the_folder(tmp_path):
    np.savez(
        tmp_path / "x.npz", features=np.ones((1, 3)), offsets=np.arange(2), slide_id=np.array(["../out"])
    )
    with pytest.raises(CohortError, match=r"'../out' is a path"):
        pack_files(find_files([tmp_path / "x.npz"]), tmp_path / "packed")
    assert not list(tmp_path.glob("**/*.h5"))


@pytest.mark.parametrize("kill", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_packing_leaves_only_whole_copies_and_goes_on(
    packed, patch_folder, write_trident, kill
):
    for number in range(24):
        write_trident(patch_folder, f"s{number}", n=400, dim=64)
    code = (
        "from slimbench.cohorts.pack import pack; from pathlib import Path\n"
        f"if __name__ == '__main__': pack(Path({str(packed / 'cohort.toml')!r}), workers=1)"
    )
    script = packed / "script.py"
    script.write_text(code)
    with subprocess.Popen(
        [sys.executable, script], stderr=subprocess.PIPE, start_new_session=True
    ) as process:
        until = time.monotonic() + 60
        while not list((packed / "packed").glob("*.h5")) and time.monotonic() < until:
            time.sleep(0.002)
        os.killpg(process.pid, kill)
        process.communicate()
    written = list((packed / "packed").glob("*.h5"))
    assert written
    for slide, file in find_files([packed / "packed"], "packed").items():
        assert len(file.read(slide).features) == 400
    done = pack(packed / "cohort.toml", workers=1)
    assert done.written + done.current == 24 and done.current == len(written)


@pytest.mark.slow
def test_packed_slides_are_read_five_times_faster(tmp_path, write_trident):
    rows = np.random.default_rng(0).normal(size=(17_182, 768)).astype(np.float32)
    write_trident(tmp_path / "features", "s", features=rows)
    (tmp_path / "slides.csv").write_text("slide_id,case_id,split\ns,p,train\n")
    (tmp_path / "cohort.toml").write_text('features = "features"\n[slides]\ntable = "slides.csv"\n')
    pack(tmp_path / "cohort.toml", tmp_path / "packed", workers=1)

    def seconds(place):
        ((name, file),) = find_files([place]).items()
        times = []
        for _ in range(7):
            started = time.process_time()
            file.read(name)
            times.append(time.process_time() - started)
        return min(times)

    assert seconds(tmp_path / "features") > 5 * seconds(tmp_path / "packed")


def test_packing_in_parallel_writes_the_same(packed):
    pack(packed / "cohort.toml", workers=2)
    pack(packed / "cohort.toml", packed / "other", workers=1)
    assert len(list((packed / "packed").glob("*.h5"))) == 24
    for path in (packed / "other").glob("*.h5"):
        with h5py.File(path) as file, h5py.File(packed / "packed" / path.name) as twin:
            np.testing.assert_array_equal(file["features"], twin["features"])
            assert dict(file.attrs) == dict(twin.attrs)
