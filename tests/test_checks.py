"""What a cohort cannot support is said in one line before anything is trained."""

import numpy as np
import pytest

import slimbench
from slimbench.cohorts import open_cohort
from slimbench.cohorts.cohort import Defaults, InMemoryCohort, Patches, Prompts, Slide
from slimbench.errors import CohortError, UsageError
from slimbench.registry import tasks
from slimbench.runs.checks import check_cohort
from slimbench.runs.grid import grid

CLASSIFICATION = ["linear-probe", "knn", "simpleshot", "few-shot"]


def cohort(
    labels: str | None = "AB", per_class: int = 20, report: str | None = "text", prompts=None, lesion=False
):
    slides = tuple(
        Slide(f"{split}{label}{row}", f"{split}{label}{row}", split, 3, label if labels else None, report)
        for split in ("test", "train", "val")
        for label in labels or "x"
        for row in range(per_class)
    )
    mask = np.array([True, False, False]) if lesion else None
    features = {slide.id: Patches(np.ones((3, 4), np.float32), lesion=mask) for slide in slides}
    classes = tuple(labels or "")
    return InMemoryCohort("small", slides, classes, 4, "report", "f", features, prompts)


def refused(of: InMemoryCohort, task: str) -> str:
    with pytest.raises(CohortError) as told:
        check_cohort([("reducer", "random"), ("task", task)], of)
    assert "\n" not in str(told.value) and "small" in str(told.value)
    return str(told.value)


def test_what_can_be_measured_passes():
    prompts = Prompts({"A": ("a",), "B": ("b",)})
    of = cohort(prompts=prompts, lesion=True)
    for task in tasks.plugins():
        if task not in ("ebrains", "ebrains-coarse", "tcga-oncotree"):
            check_cohort([("task", task)], of)


def test_the_embedded_cohort_supports_its_own_tasks():
    digits = open_cohort("digits")
    check_cohort([("task", task) for task in digits.defaults.tasks], digits)


@pytest.mark.parametrize("task", CLASSIFICATION)
def test_a_probe_wants_labels_in_train_and_test(task):
    assert "none of the 1 train slides has a label" in refused(cohort(labels=None, per_class=1), task)
    whole = cohort()
    unlabelled = [s if s.split != "test" else Slide(s.id, s.patient, "test", 3) for s in whole.slides]
    of = InMemoryCohort("small", tuple(unlabelled), whole.classes, 4, "report", "f", whole.features)
    assert "none of the 40 test slides has a label" in refused(of, task)


def test_a_linear_probe_wants_two_classes():
    assert "all 20 labelled training slides are A; a probe needs 2 classes" in refused(
        cohort("A"), "linear-probe"
    )


def test_the_protocol_slim_wants_two_classes_of_its_minimum():
    assert "0 classes have 10 test slides; protocol slim needs two" in refused(
        cohort(per_class=9), "linear-probe:protocol=slim"
    )
    check_cohort([("task", "linear-probe:protocol=slim,min_class=5")], cohort(per_class=9))


def test_few_shot_wants_a_class_with_that_many_slides():
    assert "no class has 16 training slides, the largest has 9; write few-shot:shots=1+2+4+8" in refused(
        cohort(per_class=9), "few-shot"
    )
    check_cohort([("task", "few-shot:shots=1+2+4+8")], cohort(per_class=9))


def test_a_named_benchmark_wants_its_labels():
    assert "no OncoTree codes of TCGA-OT" in refused(cohort(), "tcga-oncotree")
    assert "no EBRAINS diagnoses" in refused(cohort(), "ebrains-coarse")


def test_zero_shot_wants_prompts_for_every_class():
    assert "has no prompts" in refused(cohort(), "zero-shot")
    assert "no prompt for class B" in refused(cohort(prompts=Prompts({"A": ("a",)})), "zero-shot")


def test_retrieval_wants_reports():
    assert "0 of 40 test slides have a report" in refused(cohort(report=None), "retrieval")


def test_saliency_wants_known_lesions():
    assert "knows no diagnostic patches; leave the task saliency out" in refused(cohort(), "saliency")


def test_what_was_kept_wants_test_slides():
    whole = cohort()
    slides = tuple(slide for slide in whole.slides if slide.split != "test")
    of = InMemoryCohort("small", slides, whole.classes, 4, "report", "f", whole.features)
    for task in ("fidelity", "reconstruction", "faithfulness"):
        assert f"small has {'0' if task == 'fidelity' else 'no'} test slides; {task}" in refused(of, task)


@pytest.mark.parametrize("reads", ["nothing", "report"])
def test_a_reducer_wants_an_encoder_of_patches_whoever_wrote_it(tmp_path, reads):
    (tmp_path / "mine.py").write_text(
        f"from slimbench.encoders.text_only import TextOnly\n\nclass Mine(TextOnly):\n    reads = '{reads}'\n"
    )
    mine = f"{tmp_path}/mine.py:Mine"
    asked = grid("cropr", 0.5, encoders=mine, text="tfidf", tasks="knn")
    with pytest.raises(UsageError, match=r"mine.py:Mine reads no patches; cropr has nothing to reduce"):
        check_cohort(asked.plugins(Defaults()), cohort(), rows=asked.rows(Defaults()))


@pytest.mark.parametrize(
    ("encoder", "reducer", "said"),
    [
        ("slim-tiny", "none", "slim-tiny needs some"),
        ("slim-tiny", "random", "slim-tiny with random needs some"),
        ("mean-pool", "cropr", "mean-pool with cropr needs some"),
    ],
)
def test_what_is_trained_wants_reports(encoder, reducer, said):
    row = [(encoder, reducer, "geometric")]
    with pytest.raises(UsageError, match=f"small has no reports in its train split and {said}"):
        check_cohort([], cohort(report=None), rows=row)
    check_cohort([], cohort(), rows=row)
    check_cohort([], cohort(report=None), rows=[("mean-pool", "random", "geometric")])


def test_what_comes_with_weights_wants_no_reports(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from slimbench.encoders.slim import Slim\n\nclass Mine(Slim):\n    pretrained = True\n"
        "    def __init__(self, input_dim):\n        super().__init__(input_dim, width=8, depth=2, heads=2)\n"
    )
    mine = f"{tmp_path}/mine.py:Mine"
    check_cohort([], cohort(report=None), rows=[(mine, "random", "geometric")])
    with pytest.raises(
        UsageError, match=r"cropr learns what to keep, and .*mine.py:Mine is not trained here"
    ):
        check_cohort([], cohort(report=None), rows=[(mine, "cropr", "geometric")])


@pytest.fixture
def study(tmp_path):
    """A cohort file of nine labelled slides of one patch, without reports."""
    ids = [f"s{number}" for number in range(9)]
    np.savez(tmp_path / "x.npz", features=np.ones((9, 3)), offsets=np.arange(10), slide_id=ids)
    rows = "\n".join(f"{s},p{s},{'AB'[n % 2]},{('train', 'val', 'test')[n // 3]}" for n, s in enumerate(ids))
    (tmp_path / "slides.csv").write_text(f"slide_id,case_id,label,split\n{rows}\n")
    file = tmp_path / "c.toml"
    file.write_text('features = "x.npz"\n[slides]\ntable = "slides.csv"\nlabel = "label"\n')
    return str(file)


@pytest.mark.parametrize(
    ("encoder", "task", "error", "message"),
    [
        ("slim-tiny", "knn", UsageError, "c has no reports in its train split and slim-tiny needs some"),
        ("mean-pool", "saliency", CohortError, "c knows no diagnostic patches"),
    ],
)
def test_a_sweep_that_cannot_be_stops_there_and_leaves_nothing(
    study, tmp_path, encoder, task, error, message
):
    with pytest.raises(error, match=message):
        slimbench.sweep(
            "none", 0, cohort=study, encoders=encoder, tasks=task, text="tfidf", out=tmp_path / "out"
        )
    assert not (tmp_path / "out").exists()
