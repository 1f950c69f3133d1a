"""The tasks that classify slides: which slides take part, what they record, what they refuse."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pytest

from slimbench.cohorts.cohort import InMemoryCohort, Prompts, Slide
from slimbench.errors import CohortError
from slimbench.registry import tasks
from slimbench.statistics.metrics import NAMES
from slimbench.task import Embeddings, TaskResult

DIRECTIONS = {
    f"{word} of {organ}": vector
    for (word, organ), vector in zip(
        [(w, o) for o in ("lung", "skin", "liver") for w in ("picture", "slide")],
        np.repeat(np.eye(3, 12), 2, axis=0),
        strict=True,
    )
}


@dataclass
class Stub:
    """What tasks ask of a cell, from arrays."""

    cohort: InMemoryCohort
    x: dict[str, np.ndarray]
    logit_scale: float | None = 10.0
    seed: int = 0
    rate: float = 0.0

    def embeddings(self, split: str) -> Embeddings:
        slides = self.cohort.split(split)
        rows = np.array([self.x[slide.id] for slide in slides], dtype=np.float32).reshape(
            len(slides), self.cohort.dim
        )
        aligned = rows / np.linalg.norm(rows, axis=1, keepdims=True) if self.logit_scale else None
        return Embeddings(slides, rows, aligned, tuple((1,) for _ in slides))

    def texts(self, texts: Sequence[str]) -> np.ndarray | None:
        return np.array([DIRECTIONS[text] for text in texts], dtype=np.float32) if self.logit_scale else None


def cohort(train: int = 90, val: int = 30, test: int = 60, dim: int = 12, seed: int = 0) -> Stub:
    """Three organs in separate directions; two slides a patient."""
    rng = np.random.default_rng(seed)
    organs = ("lung", "skin", "liver")
    slides, x = [], {}
    for split, count in (("train", train), ("val", val), ("test", test)):
        for number in range(count):
            slide = Slide(
                f"{split}-{number:03}",
                f"{split}-p{number // 2:03}",
                split,
                9,
                organs[number // 2 % 3],
                "text",
            )
            slides.append(slide)
            x[slide.id] = np.eye(dim)[organs.index(slide.label)] + 0.5 * rng.normal(size=dim)
    prompts = Prompts({organ: (organ,) for organ in organs}, ("picture of CLASSNAME", "slide of CLASSNAME"))
    return Stub(InMemoryCohort("organs", tuple(slides), organs, dim, "report", "f00", {}, prompts), x)


def change(stub: Stub, rename) -> Stub:
    """The cohort with `rename(slide)` in place of each slide; None leaves it out."""
    slides = tuple(new for slide in stub.cohort.slides if (new := rename(slide)) is not None)
    return replace(stub, cohort=replace(stub.cohort, slides=slides))


def value(result: TaskResult, name: str) -> float:
    return next(metric.value for metric in result.metrics if metric.name == name)


@pytest.mark.parametrize(
    "spec",
    [
        "linear-probe",
        "linear-probe:protocol=titan",
        "linear-probe:protocol=patho-bench",
        "linear-probe:protocol=uni",
        "zero-shot",
        "knn",
        "simpleshot",
    ],
)
def test_every_classifier_reports_all_metrics_with_n_and_intervals(spec):
    task, stub = tasks.build(spec), cohort()
    result = task.run(stub)
    assert [metric.name for metric in result.metrics] == list(NAMES)
    assert task.primary in NAMES
    for metric in result.metrics:
        assert metric.n == 60 and metric.low <= metric.value <= metric.high, metric
    assert value(result, "accuracy") > 0.7
    table = result.predictions
    assert list(table) == ["slide_id", "patient", "label", "predicted", "log_probabilities"]
    log_p = np.stack(table["log_probabilities"])
    assert log_p.dtype == np.float32
    np.testing.assert_allclose(np.exp(log_p).sum(axis=1), 1, rtol=1e-5)
    assert (np.array(result.facts["classes"])[log_p.argmax(axis=1)] == table["predicted"]).all()
    assert (table["label"] == table["predicted"]).mean() == value(result, "accuracy")
    assert json.loads(json.dumps(result.facts, allow_nan=False))["classes"] == ["lung", "skin", "liver"]


def test_predictions_survive_parquet(tmp_path):
    table = tasks.build("linear-probe").run(cohort()).predictions
    table.to_parquet(tmp_path / "p.parquet")
    again = pd.read_parquet(tmp_path / "p.parquet")
    assert (np.stack(again["log_probabilities"]) == np.stack(table["log_probabilities"])).all()
    assert np.stack(again["log_probabilities"]).dtype == np.float32


def test_slides_without_a_usable_label_are_left_out_and_counted():
    def rename(slide: Slide) -> Slide:
        if slide.id in ("test-000", "test-001", "train-003"):
            return replace(slide, label=None)
        return replace(slide, label="skin") if slide.split == "train" and slide.label == "liver" else slide

    result = tasks.build("linear-probe").run(change(cohort(), rename))
    assert result.facts["left_out"]["no_class"] == {"train": 1, "val": 0, "test": 2}
    assert result.facts["left_out"]["class_absent_from_train"] == {"liver": 20}
    assert result.facts["classes"] == ["lung", "skin"]
    assert all(metric.n == 38 for metric in result.metrics)
    assert not set(result.predictions["slide_id"]) & {"test-000", "test-001", "test-004"}


def test_classes_absent_from_the_test_set_are_named_and_nothing_is_minus_one():
    stub = change(cohort(), lambda s: None if s.split == "test" and s.label == "skin" else s)
    result = tasks.build("linear-probe").run(stub)
    auroc = next(metric for metric in result.metrics if metric.name == "auroc")
    assert auroc.value > 0.7 and "absent: skin" in auroc.note
    assert result.facts["intervals"]["absent_classes"] == ["skin"]


def test_without_a_val_split_whole_training_patients_are_held_out():
    stub = change(cohort(train=120), lambda s: None if s.split == "val" else s)
    for protocol in ("titan-converged", "titan"):
        facts = tasks.build(f"linear-probe:protocol={protocol}").run(stub).facts
        assert facts["validation"] == "15% of the training slides, whole patients, stratified"
        assert facts["n"] == {"train": 102, "val": 18, "test": 60}
    facts = tasks.build("linear-probe:protocol=patho-bench").run(stub).facts
    assert facts["validation"] is None and facts["n"]["train"] == 120


def test_the_same_cell_gives_the_same_numbers_twice():
    for spec in ("linear-probe", "zero-shot", "linear-probe:protocol=slim,draws=3"):
        first, second = (tasks.build(spec).run(cohort(seed=4)) for _ in range(2))
        assert first.metrics == second.metrics


def test_slim_splits_the_test_set_by_patients_after_dropping_small_classes():
    stub = change(
        cohort(test=120), lambda s: s if s.split != "test" or s.label != "skin" or s.id < "test-020" else None
    )
    result = tasks.build("linear-probe:protocol=slim,draws=5").run(stub)
    assert result.facts["classes"] == ["lung", "liver"]
    assert result.facts["n"] == {"all": 80, "test": 8}
    assert set(result.predictions["draw"]) == set(range(5))
    assert result.predictions.groupby("draw")["slide_id"].nunique().tolist() == [8] * 5
    accuracy = next(metric for metric in result.metrics if metric.name == "accuracy")
    assert accuracy.n == 8 and accuracy.low <= accuracy.value <= accuracy.high
    assert "5 splits" in accuracy.note


def test_refusals_name_the_cohort_and_the_remedy():
    plain = cohort()
    unlabelled = change(plain, lambda s: replace(s, label=None) if s.split == "test" else s)
    with pytest.raises(CohortError, match="organs: none of the 60 test slides has a label"):
        tasks.build("linear-probe").run(unlabelled)
    one_class = change(plain, lambda s: replace(s, label="lung"))
    with pytest.raises(CohortError, match="at least two"):
        tasks.build("linear-probe").run(one_class)
    broken = replace(plain, x=plain.x | {"train-007": np.full(12, np.nan)})
    with pytest.raises(CohortError, match="train-007 is not finite"):
        tasks.build("linear-probe").run(broken)
    with pytest.raises(CohortError, match="classes have 50 test slides"):
        tasks.build("linear-probe:protocol=slim,min_class=50").run(plain)


def test_zero_shot_is_the_normalised_mean_of_normalised_prompts():
    stub = cohort()
    result = tasks.build("zero-shot").run(stub)
    embeddings = stub.embeddings("test")
    centres = []
    for organ in stub.cohort.classes:
        mean = np.mean([DIRECTIONS[f"{word} of {organ}"] for word in ("picture", "slide")], axis=0)
        centres.append(mean / np.linalg.norm(mean))
    logits = 10 * embeddings.aligned.astype(np.float64) @ np.array(centres).T
    expected = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(np.stack(result.predictions["log_probabilities"]), expected, atol=1e-5)
    assert result.facts["logit_scale"] == 10.0


def test_zero_shot_temperature_moves_log_probabilities_and_no_prediction():
    learned, titan = (tasks.build(spec).run(cohort()) for spec in ("zero-shot", "zero-shot:logit_scale=1"))
    assert (learned.predictions["predicted"] == titan.predictions["predicted"]).all()
    assert titan.facts["logit_scale"] == 1.0
    assert not np.allclose(
        np.stack(learned.predictions["log_probabilities"]), np.stack(titan.predictions["log_probabilities"])
    )


def test_zero_shot_gives_no_class_to_a_slide_that_says_nothing():
    stub = cohort()
    test = stub.cohort.split("test")
    silent = {next(slide.id for slide in test if slide.label == organ) for organ in stub.cohort.classes}

    class Silent(Stub):
        def embeddings(self, split):
            made = super().embeddings(split)
            zero = np.array([slide.id in silent for slide in made.slides])
            return replace(made, aligned=np.where(zero[:, None], np.float32(0), made.aligned))

    result = tasks.build("zero-shot").run(Silent(stub.cohort, stub.x))
    table = result.predictions.set_index("slide_id")
    assert len(table) == len(test)  # rows of a table stand on the same slides
    for name in silent:
        assert table.predicted[name] != table.label[name]
        np.testing.assert_allclose(table.log_probabilities[name], -np.log(3), atol=2e-5)
    assert result.facts["zero_embeddings"] == 3
    assert "3 of 60 slides have a zero embedding and count as wrong" in result.metrics[0].note
    assert tasks.build("zero-shot").run(stub).metrics[0].note != result.metrics[0].note


def test_zero_shot_reports_prompts_shared_by_two_classes():
    stub = cohort()
    names = {"lung": ("lung",), "skin": ("skin", "lung"), "liver": ("liver",)}
    stub = replace(stub, cohort=replace(stub.cohort, prompts=Prompts(names, ("slide of CLASSNAME",))))
    assert tasks.build("zero-shot").run(stub).facts["prompts_shared_by_classes"] == {
        "slide of lung": ["lung", "skin"]
    }


def test_zero_shot_says_which_wording_it_asked_with():
    stub = cohort()
    facts = tasks.build("zero-shot").run(stub).facts
    fewer = replace(stub.cohort.prompts, templates=("picture of CLASSNAME",), source="own.yaml")
    other = tasks.build("zero-shot").run(replace(stub, cohort=replace(stub.cohort, prompts=fewer))).facts
    assert (facts["wording"], other["wording"]) == ("cohort", "own.yaml")
    assert len(facts["wording_hash"]) == 16 and facts["wording_hash"] != other["wording_hash"]


def test_zero_shot_names_the_wording_that_a_cohort_without_prompts_could_use():
    codes = replace(cohort().cohort, prompts=None, classes=("LUAD", "UM"))
    with pytest.raises(CohortError, match='has no prompts; write prompts = "tcga-ot" in the cohort file'):
        tasks.build("zero-shot").run(replace(cohort(), cohort=codes))


def test_zero_shot_refuses_classes_without_prompts_and_encoders_without_text():
    stub = cohort()
    with pytest.raises(CohortError, match="no prompt for class liver"):
        prompts = Prompts({"lung": ("lung",), "skin": ("skin",)})
        tasks.build("zero-shot").run(replace(stub, cohort=replace(stub.cohort, prompts=prompts)))
    with pytest.raises(CohortError, match="has no prompts"):
        tasks.build("zero-shot").run(replace(stub, cohort=replace(stub.cohort, prompts=None)))
    with pytest.raises(CohortError, match="not aligned"):
        tasks.build("zero-shot").run(replace(stub, logit_scale=None))
    assert tasks.build("zero-shot").needs_alignment


def test_label_supervision_is_on_the_record():
    stub = cohort()
    told = replace(stub, cohort=replace(stub.cohort, captions="template-with-label"))
    assert not tasks.build("linear-probe").run(stub).facts["label_supervised"]
    assert tasks.build("linear-probe").run(told).facts["label_supervised"]
    assert not tasks.build("linear-probe").run(replace(told, logit_scale=None)).facts["label_supervised"]
