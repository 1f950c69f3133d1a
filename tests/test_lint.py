"""What printed numbers give away: the paper's tables, ranges, denominators, kappas."""

import json
from pathlib import Path

import pytest

from slimbench.statistics.lint import Row, fitting_sizes, lint

PUBLISHED = Path(__file__).parents[1] / "results" / "published" / "slim.json"


def rows(cohort: str) -> list[Row]:
    return [
        Row(f"table {row['table']}, {row['row']}", row["metrics"])
        for row in json.loads(PUBLISHED.read_text())["rows"]
        if row["cohort"] == cohort and "accuracy" in row["metrics"]
    ]


@pytest.mark.parametrize(
    ("cohort", "size", "multiples"), [("TCGA", 63, {63, 126, 189, 252}), ("EBRAINS", 232, {232})]
)
def test_the_papers_accuracies_betray_their_test_sets(cohort, size, multiples):
    found = [finding.message for finding in lint(rows(cohort)) if "accuracies" in finding.message]
    assert len(found) == 1 and f"accuracies are k/{size} " in found[0]
    accuracies = [row.metrics["accuracy"] for row in rows(cohort)]
    sizes = fitting_sizes(accuracies, digits=3, largest=300)
    assert set(sizes.counts) == multiples and sizes.chance[size] < 0.01


def test_slim_is_one_slide_above_no_pruning():
    sizes = fitting_sizes([0.905, 0.921], digits=3, largest=63)
    assert sizes.counts[63] == (57, 58)


def test_the_papers_nw_kappa_cannot_be_unweighted():
    found = [finding for finding in lint(rows("TCGA")) if "cannot be unweighted" in finding.message]
    assert any(f.where == "table 1, SLIM (No Pruning)" and "kappa_linear 0.927" in f.message for f in found)
    assert all(finding.kind == "note" for finding in found)


def test_a_few_accuracies_prove_nothing():
    assert not lint([Row("x", {"accuracy": 0.5}), Row("y", {"accuracy": 0.25})]) and not lint([])
    assert set(fitting_sizes([0.5, 0.25], 3, 12).counts) == {4, 8, 12}


def test_an_accuracy_that_is_no_multiple_of_its_n_is_an_error():
    assert not lint([Row("x", {"accuracy": 0.905}, n=63)])
    found = lint([Row("x", {"accuracy": 0.91}, n=63)])
    assert [f.kind for f in found] == ["error"] and "no multiple of 1/63" in found[0].message


def test_an_unweighted_kappa_above_the_accuracy_is_an_error():
    found = lint([Row("x", {"accuracy": 0.8, "kappa_unweighted": 0.81})])
    assert [(f.kind, f.where) for f in found] == [("error", "x")]
    assert not lint([Row("x", {"accuracy": 0.8, "kappa_unweighted": 0.8005})])  # rounding


@pytest.mark.parametrize(
    ("name", "value", "bad"),
    [
        ("auroc", 1.002, True),
        ("auroc", -1.0, True),
        ("kappa_quadratic", -0.2, False),
        ("kappa_quadratic", -1.2, True),
        ("i2t_mean_rank", 0.5, True),
        ("i2t_mean_rank", 320.0, False),
        ("t2i_recall_at_10", 31.6, True),
        ("i2t_median_rank", 1.0, False),
        ("balanced_accuracy_10", 92.1, True),
        ("flops", -3.0, False),
    ],
)
def test_values_outside_their_range_are_errors(name, value, bad):
    assert bool([f for f in lint([Row("x", {name: value})]) if f.kind == "error"]) == bad
