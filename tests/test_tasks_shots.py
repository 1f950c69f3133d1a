"""Nearest neighbours, class means, few shots, the named benchmarks, and HIPT's published values."""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml
from sklearn.model_selection import StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier

from slimbench.cohorts.cohort import InMemoryCohort, Slide
from slimbench.errors import CohortError
from slimbench.registry import tasks
from slimbench.statistics.metrics import measure
from slimbench.task import Embeddings
from slimbench.tasks.ebrains import DIAGNOSES, GROUPS
from slimbench.tasks.knn import NearestNeighbours
from slimbench.tasks.tcga_oncotree import CODES

SHARED = Path(__file__).parents[2] / "shared" / "data"
PUBLISHED = SHARED / "hipt-tcga" / "knn_published.npz"


@dataclass
class Stub:
    """Slides with embeddings, no text."""

    cohort: InMemoryCohort
    x: dict[str, np.ndarray]
    logit_scale: float | None = None

    def embeddings(self, split: str) -> Embeddings:
        slides = self.cohort.split(split)
        rows = np.array([self.x[slide.id] for slide in slides], dtype=np.float32)
        return Embeddings(slides, rows.reshape(len(slides), self.cohort.dim), None, ())


def study(labels, counts=(60, 30, 60), dim: int = 12, noise: float = 0.5, seed: int = 0) -> Stub:
    rng = np.random.default_rng(seed)
    slides, x, centres = [], {}, rng.normal(size=(len(labels), dim))
    for split, count in zip(("train", "val", "test"), counts, strict=True):
        for number in range(count):
            slide = Slide(
                f"{split}-{number:03}", f"{split}-p{number:03}", split, 9, labels[number % len(labels)]
            )
            slides.append(slide)
            x[slide.id] = centres[number % len(labels)] + noise * rng.normal(size=dim)
    return Stub(InMemoryCohort("study", tuple(slides), tuple(labels), dim, "report", "f00", {}), x)


def values(result) -> dict[str, float]:
    return {metric.name: metric.value for metric in result.metrics}


def test_knn_is_scikit_learns_vote():
    stub = study("abc", noise=2.0)
    result = tasks.build("knn:k=7").run(stub)
    train, test = stub.embeddings("train"), stub.embeddings("test")
    model = KNeighborsClassifier(7).fit(train.embedding, [slide.label for slide in train.slides])
    assert (result.predictions["predicted"] == model.predict(test.embedding)).all()
    log_p = np.stack(result.predictions["log_probabilities"])
    np.testing.assert_allclose(np.exp(log_p) * 8 - 1 / 3, 7 * model.predict_proba(test.embedding), atol=1e-5)
    assert result.facts["k"] == 7
    assert tasks.build("knn").k == 20


def test_knn_with_more_neighbours_than_slides_takes_all():
    result = tasks.build("knn").run(study("ab", counts=(6, 0, 10)))
    assert result.facts["k"] == 6 and np.isfinite(np.stack(result.predictions["log_probabilities"])).all()


def test_simpleshot_is_the_nearest_mean_of_centred_unit_vectors():
    stub = study("abcd", noise=1.5)
    train, test = stub.embeddings("train"), stub.embeddings("test")
    centre = train.embedding.mean(axis=0)
    unit = lambda x: (x - centre) / np.linalg.norm(x - centre, axis=1, keepdims=True)
    labels = np.array([slide.label for slide in train.slides])
    means = np.stack([unit(train.embedding)[labels == label].mean(axis=0) for label in "abcd"])
    nearest = [np.linalg.norm(means - row, axis=1).argmin() for row in unit(test.embedding)]
    found = tasks.build("simpleshot").run(stub).predictions["predicted"]
    assert (found == np.array(list("abcd"))[nearest]).all()
    assert found.nunique() == 4


def test_more_shots_teach_more_and_draws_are_reproducible():
    stub = study("abc", counts=(90, 30, 90), noise=1.2)
    task = tasks.build("few-shot:shots=1+16,draws=6")
    first, second = task.run(stub), task.run(stub)
    assert first.metrics == second.metrics
    found = values(first)
    assert found["balanced_accuracy_1_shot"] + 0.1 < found["balanced_accuracy_16_shot"]
    metric = next(m for m in first.metrics if m.name == "balanced_accuracy_1_shot")
    assert metric.low < metric.value < metric.high and metric.n == 90 and metric.note is None
    assert task.primary in found
    sizes = first.predictions.groupby(["shots", "draw"]).size()
    assert len(sizes) == 12 and (sizes == 90).all()
    right = first.predictions["label"] == first.predictions["predicted"]
    one = first.predictions["shots"] == 1
    assert right[one].mean() == pytest.approx(found["accuracy_1_shot"])


def test_the_primary_metric_is_that_of_the_most_shots_asked_for():
    task = tasks.build("few-shot:shots=4+1,draws=2")
    assert task.primary == "balanced_accuracy_4_shot" and task.primary in values(task.run(study("ab")))
    assert tasks.build("few-shot").primary == "balanced_accuracy_16_shot"


def test_a_class_with_too_few_slides_gives_all_it_has():
    stub = study("abc", counts=(12, 30, 30))
    result = tasks.build("few-shot:shots=2+16,draws=2").run(stub)
    notes = {metric.name: metric.note for metric in result.metrics}
    assert notes["accuracy_2_shot"] is None
    assert notes["accuracy_16_shot"] == "3 of 3 classes have fewer than 16 training slides"


def test_oncotree_codes_keep_titans_order_and_other_labels_are_counted():
    result = tasks.build("tcga-oncotree").run(study(("UM", "LUAD", "unknown", "BLCA")))
    assert result.facts["classes"] == ["BLCA", "LUAD", "UM"]
    assert result.facts["left_out"]["no_class"] == {"train": 15, "val": 7, "test": 15}
    assert result.facts["protocol"] == "titan-converged"
    assert tasks.build("tcga-oncotree:protocol=titan").protocol == "titan"
    with pytest.raises(CohortError, match="no OncoTree codes"):
        tasks.build("tcga-oncotree").run(study("abc"))


def test_ebrains_fine_and_coarse_share_slides_and_differ_in_classes():
    stub = study(("Gliosarcoma", "Ependymoma", "Anaplastic ependymoma", "Metastatic tumours"))
    fine, coarse = (tasks.build(name).run(stub) for name in ("ebrains", "ebrains-coarse"))
    assert fine.facts["classes"] == [
        "Anaplastic ependymoma",
        "Ependymoma",
        "Gliosarcoma",
        "Metastatic tumours",
    ]
    assert coarse.facts["classes"] == [
        "Adult-type diffuse gliomas",
        "Ependymal Tumours",
        "Metastatic tumours",
    ]
    assert coarse.metrics[0].n == fine.metrics[0].n == 60
    assert (coarse.predictions["label"] == "Ependymal Tumours").sum() == 30
    groups = tasks.build("ebrains-coarse").run(study(("Meningiomas", "Circumscribed astrocytic gliomas ")))
    assert groups.facts["classes"] == ["Circumscribed astrocytic gliomas", "Meningiomas"]
    with pytest.raises(CohortError, match="no EBRAINS diagnoses"):
        tasks.build("ebrains").run(study("abc"))


@pytest.mark.skipif(not SHARED.is_dir(), reason="the published tables are not beside this checkout")
def test_label_rules_are_those_of_the_published_tables():
    config = yaml.safe_load((SHARED / "TITAN" / "config_tcga-ot.yaml").read_text())
    assert {code: number for number, code in enumerate(CODES)} == config["label_dict"]
    pairs = set()
    for split in ("train", "val", "test"):
        with (SHARED / "PANTHER" / f"ebrains_{split}.csv").open(encoding="utf-8") as file:
            pairs |= {(row["diagnosis_group"].strip(), row["diagnosis"]) for row in csv.DictReader(file)}
    assert pairs == {(group, name) for group, members in GROUPS.items() for name in members}
    assert len(DIAGNOSES) == 30 and len(GROUPS) == 12 and list(DIAGNOSES) == sorted(DIAGNOSES)


def five_nn_auroc(x, y) -> float:
    """HIPT's check: 5-NN in ten folds, AUROC against the rest, mean over classes and folds."""
    folds = []
    for train, test in StratifiedKFold(10, shuffle=True, random_state=0).split(x, y):
        votes = KNeighborsClassifier().fit(x[train], y[train]).predict_proba(x[test])
        rest = [1] if votes.shape[1] == 2 else range(votes.shape[1])
        folds.append(
            np.mean(
                [
                    measure(["auroc"], 1 * (y[test] == k), np.stack([1 - votes[:, k], votes[:, k]], 1))[
                        "auroc"
                    ][0]
                    for k in rest
                ]
            )
        )
    return float(np.mean(folds))


@pytest.mark.skipif(not PUBLISHED.is_file(), reason="HIPT's vectors are not beside this checkout")
@pytest.mark.parametrize(
    ("study_name", "n", "published"),
    [
        ("brca", 875, 0.7738300898746104),
        ("kidney", 905, 0.9739114652064474),
        ("lung", 958, 0.8935382487870264),
    ],
)
def test_hipts_published_values_to_the_last_digit(study_name, n, published):
    pack = np.load(PUBLISHED)
    x, y = pack[f"{study_name}_x"], pack[f"{study_name}_y"]
    assert len(y) == n
    assert five_nn_auroc(x, y) == pytest.approx(published, abs=1e-15)


@pytest.mark.slow
@pytest.mark.skipif(not PUBLISHED.is_file(), reason="HIPT's vectors are not beside this checkout")
def test_lung_from_the_bags_themselves():
    bags = {}
    for file in ("train", "train_rest", "val", "test"):
        pack = np.load(SHARED / "hipt-tcga" / f"{file}.npz")
        parts = np.split(pack["features"], pack["offsets"][1:-1])
        bags.update(zip(pack["slide_id"].tolist(), parts, strict=True))
    published = np.load(PUBLISHED)
    x = np.stack([bags[name].astype(np.float32).mean(axis=0) for name in published["lung_id"].tolist()])
    assert five_nn_auroc(x, published["lung_y"]) == pytest.approx(0.8935382487870264, abs=1e-15)


@pytest.mark.skipif(not PUBLISHED.is_file(), reason="HIPT's vectors are not beside this checkout")
def test_the_task_on_one_fold_is_that_vote():
    pack = np.load(PUBLISHED)
    x, y = pack["lung_x"], pack["lung_y"]
    train, test = next(iter(StratifiedKFold(10, shuffle=True, random_state=0).split(x, y)))
    slides = tuple(
        Slide(f"{split}{row:04}", f"p{row}", split, 1, ("LUAD", "LUSC")[y[row]])
        for split, rows in (("train", train), ("test", test))
        for row in rows
    )
    rows = dict(zip((slide.id for slide in slides), np.concatenate([x[train], x[test]]), strict=True))
    stub = Stub(InMemoryCohort("lung", slides, ("LUAD", "LUSC"), x.shape[1], "report", "f00", {}), rows)
    votes = KNeighborsClassifier().fit(x[train], y[train]).predict_proba(x[test])
    expected = measure(["auroc"], y[test], votes)["auroc"][0]
    assert values(NearestNeighbours(k=5).run(stub))["auroc"] == pytest.approx(expected, abs=1e-15)
