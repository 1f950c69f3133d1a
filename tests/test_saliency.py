"""Saliency on cases worked out by hand."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from slimbench.cohorts.cohort import Slide
from slimbench.errors import CohortError
from slimbench.tasks.saliency import Saliency, first_scores_auroc, recall
from slimbench.trace import STAYED, Trace

LESION = np.array([True, True, False, False, False, False])


def evidence(traces: dict[str, Trace], lesions: dict[str, np.ndarray | None]) -> SimpleNamespace:
    slides = [Slide(name, f"patient {name}", "test", 6) for name in traces]
    truths = {name: None if lesion is None else torch.from_numpy(lesion) for name, lesion in lesions.items()}
    return SimpleNamespace(
        cohort=SimpleNamespace(name="c", split=lambda _: slides),
        traces=lambda _: traces,
        slide=lambda name: SimpleNamespace(truth=truths[name]),
    )


def pruned(kept: list[int], scores: list[float]) -> Trace:
    assign = torch.full((6,), -1)
    assign[kept] = torch.arange(len(kept))
    return Trace(6, {1: assign}, {1: torch.tensor(scores)})


def test_recall_counts_lesion_patches_that_are_kept() -> None:
    assert recall(np.array([0, -1, 1, -1, -1, -1]), LESION) == 0.5


def test_a_merged_lesion_patch_counts_while_its_token_is_at_least_half_lesion() -> None:
    assert recall(np.array([0, 1, 0, 1, 1, 2]), LESION) == 0.5  # 1 of 2, and 1 of 3
    assert recall(np.array([0, 0, 0, 0, 1, 1]), LESION) == 1.0  # 2 of 4


def test_auroc_is_of_the_first_module_and_ties_count_half() -> None:
    trace = pruned([0, 2], [3.0, 1.0, 2.0, 1.0, 0.0, 0.0])
    trace.assigns[4], trace.scores[4] = torch.tensor([0, -1]), torch.tensor([0.0, 9.0])
    pairs = [(x < 3) + 0.5 * (x == 3) for x in (2, 1, 0, 0)] + [
        (x < 1) + 0.5 * (x == 1) for x in (2, 1, 0, 0)
    ]
    assert first_scores_auroc(trace, LESION) == pytest.approx(sum(pairs) / 8)


def test_the_task_averages_slides_and_stays_in_range() -> None:
    traces = {
        "a": pruned([0, 1], [5, 4, 3, 2, 1, 0]),
        "b": pruned([0, 3], [5, 1, 3, 4, 2, 0]),
        "c": pruned([2, 3], [0, 0, 1, 1, 0, 0]),
        "no lesion": pruned([0, 1], [1, 1, 1, 1, 1, 1]),
    }
    lesions = {"a": LESION, "b": LESION, "c": LESION, "no lesion": np.zeros(6, bool)}
    result = Saliency().run(evidence(traces, lesions))
    found = {metric.name: metric for metric in result.metrics}
    assert found["lesion_recall"].value == pytest.approx((1 + 0.5 + 0) / 3) and found["lesion_recall"].n == 3
    assert found["lesion_enrichment"].value == pytest.approx(0.5 / (2 / 6))
    assert found["score_auroc"].value == pytest.approx((1 + 5 / 8 + 2 / 8) / 3)
    for metric in (found["lesion_recall"], found["score_auroc"]):
        assert 0 <= metric.low < metric.value < metric.high <= 1
    assert list(result.predictions["slide_id"]) == ["a", "b", "c"]


def test_a_reducer_without_scores_has_no_auroc_and_says_so() -> None:
    trace = pruned([0, 1], [])
    trace.scores.clear()
    found = {metric.name: metric for metric in Saliency().run(evidence({"a": trace}, {"a": LESION})).metrics}
    assert found["score_auroc"].value is None and found["score_auroc"].note == "this reducer has no score"


def test_a_cohort_without_known_lesions_is_told_to_leave_the_task_out() -> None:
    with pytest.raises(CohortError, match="leave the task saliency out"):
        Saliency().run(evidence({"a": pruned([0], [1] * 6)}, {"a": None}))


def test_a_patch_leaves_once_and_a_merged_group_keeps_its_heaviest_member() -> None:
    trace = Trace(6)
    trace.origins[1] = torch.tensor([0, 2, 3, 5])  # patches 1 and 4 leave before block 1
    trace.origins[4] = torch.tensor([2, -1])  # a made token stands at no patch
    assert trace.left().tolist() == [4, 1, STAYED, 4, 1, 4]
    assert Trace(2).left().tolist() == [STAYED, STAYED]
