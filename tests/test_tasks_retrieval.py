"""The retrieval task: identical reports, missing reports, collapse, refusals."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest

from slimbench.cohorts.cohort import InMemoryCohort, Slide
from slimbench.errors import CohortError
from slimbench.registry import tasks
from slimbench.task import Embeddings


@dataclass
class Stub:
    """Slides whose aligned vector is that of their own report, up to noise."""

    cohort: InMemoryCohort
    aligned: np.ndarray
    vectors: dict[str, np.ndarray]
    logit_scale: float | None = 10.0

    def embeddings(self, split: str) -> Embeddings:
        return Embeddings(self.cohort.split(split), self.aligned, self.aligned, ())

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        return np.array([self.vectors[text] for text in texts], dtype=np.float32)


def study(reports: Sequence[str | None], noise: float = 0.1, dim: int = 16) -> Stub:
    rng = np.random.default_rng(1)
    slides = tuple(
        Slide(f"s{number:02}", f"p{number // 2:02}", "test", 5, None, report)
        for number, report in enumerate(reports)
    )
    vectors = {
        " ".join(report.split()): rng.normal(size=dim) for report in reports if report and report.strip()
    }
    aligned = [
        vectors.get(" ".join((slide.report or "").split()), np.ones(dim)) + noise * rng.normal(size=dim)
        for slide in slides
    ]
    unit = np.array(aligned, dtype=np.float32)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    return Stub(InMemoryCohort("notes", slides, (), dim, "report", "f00", {}), unit, vectors)


def metrics(stub: Stub) -> dict:
    return {metric.name: metric for metric in tasks.build("retrieval").run(stub).metrics}


def test_a_good_alignment_finds_its_reports():
    found = metrics(study([f"report {number}" for number in range(30)]))
    assert found["i2t_recall_at_1"].value == found["t2i_recall_at_1"].value == 1
    assert found["i2t_mean_rank"].value == found["t2i_median_rank"].value == found["i2t_mrr"].value == 1
    assert found["i2t_recall_at_1"].low < 0.9  # Wilson over 15 patients, not [1, 1]
    assert {metric.n for metric in found.values()} == {30}


def test_identical_reports_are_one_target_whatever_their_spaces_and_unicode_form():
    stub = study(["benign", " benign\n", "caf\u00e9 au lait", "cafe\u0301  au lait", "c", None, "  "])
    result = tasks.build("retrieval").run(stub)
    assert (result.facts["images"], result.facts["texts"], result.facts["without_report"]) == (5, 3, 2)
    by_direction = result.predictions.groupby("direction").size()
    assert by_direction["i2t"] == 5 and by_direction["t2i"] == 3
    t2i = result.predictions[result.predictions["direction"] == "t2i"]
    assert sorted(t2i["gallery"]) == [4, 4, 5]


def test_a_collapsed_encoder_reports_chance_beside_its_values():
    stub = study([f"report {number}" for number in range(24)])
    stub = replace(stub, aligned=np.tile(stub.aligned[:1], (24, 1)))
    result = tasks.build("retrieval").run(stub)
    found = {metric.name: metric.value for metric in result.metrics}
    chance = result.facts["t2i"]["chance"]
    for name in ("recall_at_1", "recall_at_10", "mrr", "mean_rank"):
        assert found[f"t2i_{name}"] == pytest.approx(chance[name], abs=1e-12)
    assert result.facts["t2i"]["share_of_tied_queries"] == 1


def test_intervals_hold_the_value_and_ranks_stay_in_the_gallery():
    found = metrics(study([f"report {number}" for number in range(40)], noise=1.5))
    for metric in found.values():
        assert metric.low <= metric.value <= metric.high
    assert found["i2t_mean_rank"].low >= 1 and found["i2t_mean_rank"].high <= 40
    assert found["i2t_mean_rank"].high - found["i2t_mean_rank"].low > 1


def test_cutoffs_beyond_the_gallery_say_so():
    found = metrics(study(["a", "b", "c", "d"], noise=5))
    assert found["i2t_recall_at_5"].value == 1 and "gallery has 4" in found["i2t_recall_at_5"].note
    assert found["i2t_recall_at_1"].note is None


def test_smaller_galleries_are_easier():
    result = tasks.build("retrieval").run(study([f"r{number}" for number in range(120)], noise=3))
    curve = result.facts["i2t"]["recall_at_10_by_gallery"]
    whole = next(m.value for m in result.metrics if m.name == "i2t_recall_at_10")
    json.dumps(result.facts, allow_nan=False)
    assert list(curve) == ["10", "100"] and curve["10"] == 1 > curve["100"] > whole


def test_refusals():
    with pytest.raises(CohortError, match="1 of 3 test slides have a report"):
        tasks.build("retrieval").run(study([None, "a", ""]))
    stub = study(["a", "b", "c"])
    stub.aligned[1] = 0
    with pytest.raises(CohortError, match="slide s01 is zero or not finite"):
        tasks.build("retrieval").run(stub)
    stub = study(["a", "b", "c"])
    stub.vectors["b"] = np.full(16, np.nan)
    with pytest.raises(CohortError, match="report of slide s01"):
        tasks.build("retrieval").run(stub)
