"""The row that sees no slide: the report's own vector, and nothing where there is none."""

import numpy as np
import pytest

from slimbench.cohorts.cohort import InMemoryCohort, Patches, Prompts, Slide
from slimbench.errors import UsageError
from slimbench.leaderboard.board import leaderboard
from slimbench.runs import cell as cells
from slimbench.runs.cell import run_cell
from slimbench.runs.checks import check_cohort
from slimbench.runs.record import Cell, Record
from slimbench.text.tfidf import TfidfText

WORDS = {"A": "adenoma of the colon", "B": "basal cell carcinoma", "C": "chondrosarcoma, grade two"}


class NoPatches(InMemoryCohort):
    def patches(self, slide_id: str) -> Patches:
        raise AssertionError(f"{slide_id} was read")


def cohort(without: tuple[str, ...] = (), captions: str = "report") -> NoPatches:
    slides = []
    for split, n in (("test", 5), ("train", 8), ("val", 3)):
        for label, words in WORDS.items():
            for number in range(n):
                name = f"{split}-{label}-{number}"
                text = (
                    None
                    if name in without
                    else f"{words}; specimen {name.replace('-', '')} seen {number} times"
                )
                slides.append(Slide(name, name, split, 7, label, text))
    prompts = Prompts({label: (words,) for label, words in WORDS.items()})
    return NoPatches("words", tuple(slides), tuple(WORDS), 4, captions, f"{without}{captions}", {}, prompts)


@pytest.fixture
def run(tmp_path, monkeypatch):
    def run(of: InMemoryCohort, *tasks: str, reducer: str = "none") -> Record:
        monkeypatch.setattr(cells, "open_cohort", lambda name: of)
        asked = {
            "encoder": "text-only",
            "reducer": reducer,
            "text": "tfidf",
            "recipe": "tiny",
            "tasks": tasks,
        }
        cell = Cell(rate=0, trained_at=0, seed=0, cohort="words", **asked)
        return run_cell(cell, tmp_path / "out", lambda progress: None)

    return run


def metrics(record: Record, task: str) -> dict[str, float | None]:
    return {metric.name: metric.value for metric in record.tasks[task].metrics}


def vectors(of: InMemoryCohort, split: str) -> np.ndarray:
    """What the tower, fitted to the training reports, makes of each report; zeros for none."""
    tower = TfidfText([slide.report for slide in of.split("train") if slide.report])
    rows = [tower.embed([slide.report])[0] if slide.report else np.zeros(64) for slide in of.split(split)]
    return np.stack(rows).astype(np.float64)


def test_the_nearest_neighbours_are_those_of_the_towers_vectors(run):
    of = cohort()
    record = run(of, "knn:k=1", "linear-probe")
    train, test = vectors(of, "train"), vectors(of, "test")
    nearest = ((test[:, None] - train[None]) ** 2).sum(axis=2).argmin(axis=1)
    right = [s.label == of.split("train")[k].label for s, k in zip(of.split("test"), nearest, strict=True)]
    assert metrics(record, "knn:k=1")["accuracy"] == pytest.approx(np.mean(right))
    assert metrics(record, "linear-probe")["accuracy"] == 1  # every report names its class
    assert record.training is None and record.kept is None


def test_a_slide_without_a_report_stays_in_the_row_as_zeros_and_is_counted(run):
    without = ("test-A-0", "test-C-1", "train-B-2")
    of = cohort(without)
    record = run(of, "knn:k=1")
    train, test = vectors(of, "train"), vectors(of, "test")
    assert not test[0].any() and test[1].any()
    nearest = ((test[:, None] - train[None]) ** 2).sum(axis=2).argmin(axis=1)
    right = [s.label == of.split("train")[k].label for s, k in zip(of.split("test"), nearest, strict=True)]
    assert metrics(record, "knn:k=1")["accuracy"] == pytest.approx(np.mean(right))
    assert record.tasks["knn:k=1"].facts["n"]["test"] == 15
    assert record.provenance["encoder"]["without_report"] == {"train": 1, "val": 0, "test": 2}
    (table,) = leaderboard([record])
    marks = table.rows[0][[column.title for column in table.columns].index("marks")].text
    assert "text only" in marks and "reports missing" in marks
    assert "text-only: no report in 1 train, 2 test slides" in table.notes
    (complete,) = leaderboard([run(cohort(), "knn:k=1")])
    assert not any("no report" in note or "missing" in note for note in complete.notes)


def test_zero_shot_is_the_towers_own_and_a_report_finds_itself(run):
    of = cohort()
    record = run(of, "zero-shot", "retrieval")
    tower = TfidfText([slide.report for slide in of.split("train")])
    test, prompts = vectors(of, "test"), tower.embed(list(WORDS.values())).astype(float)
    cosine = (test / np.linalg.norm(test, axis=1, keepdims=True)) @ (
        prompts / np.linalg.norm(prompts, axis=1, keepdims=True)
    ).T
    right = [
        list(WORDS)[k] == slide.label
        for slide, k in zip(of.split("test"), cosine.argmax(axis=1), strict=True)
    ]
    assert metrics(record, "zero-shot")["accuracy"] == pytest.approx(np.mean(right))
    assert record.tasks["zero-shot"].facts["logit_scale"] == 1
    assert metrics(record, "retrieval")["i2t_recall_at_1"] == 1
    assert metrics(record, "retrieval")["t2i_mean_rank"] == 1


def test_texts_that_hold_the_label_make_it_label_supervised(run):
    assert run(cohort(captions="template-with-label"), "knn:k=1").tasks["knn:k=1"].facts["label_supervised"]
    assert not run(cohort(), "knn:k=1").tasks["knn:k=1"].facts["label_supervised"]


def test_what_needs_patches_is_skipped_and_no_reducer_has_a_place(run):
    record = run(cohort(), "efficiency", "knn:k=1")
    assert record.tasks["efficiency"].skipped == "the encoder reads no patches"
    with pytest.raises(UsageError, match="text-only reads no patches; random has nothing to reduce"):
        run(cohort(), "knn:k=1", reducer="random")


def test_without_reports_to_train_on_it_says_so_beforehand(run):
    of = cohort(tuple(slide.id for slide in cohort().split("train")))
    with pytest.raises(UsageError, match="words has no reports in its train split and text-only needs some"):
        check_cohort([("encoder", "text-only")], of)
    with pytest.raises(UsageError, match="no reports in its train split"):
        run(of, "knn:k=1")
