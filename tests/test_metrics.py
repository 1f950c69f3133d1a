"""Metrics against scikit-learn and against golden values."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from slimbench.statistics import metrics
from slimbench.statistics.metrics import COUNTED, NAMES, Confusion, Weighting, auroc

GOLDEN = Path(__file__).parents[2] / "shared" / "data" / "golden_metrics.json"


def measure(name: str, truth, log_p, weighting=None):
    return metrics.measure([name], truth, log_p, weighting)[name]


def sklearn_value(name: str, truth, scores) -> float:
    """The metric by scikit-learn over the whole label set; `truth` may lack classes."""
    labels = np.arange(scores.shape[1])
    predicted = scores.argmax(axis=1)
    if name == "accuracy":
        return sk.accuracy_score(truth, predicted)
    if name.startswith("balanced_accuracy"):
        least = 10 if name.endswith("_10") else 1
        kept = [k for k in labels if (truth == k).sum() >= least]
        return float(np.mean([(predicted[truth == k] == k).mean() for k in kept])) if kept else np.nan
    if name == "weighted_f1":
        return sk.f1_score(truth, predicted, labels=labels, average="weighted", zero_division=0)
    if name == "auroc":
        p = np.exp(scores - scores.max(axis=1, keepdims=True))
        p = p / p.sum(axis=1, keepdims=True)
        return sk.roc_auc_score(truth, p, labels=labels, multi_class="ovo", average="macro")
    weights = {"kappa_quadratic": "quadratic", "kappa_linear": "linear", "kappa_unweighted": None}[name]
    return sk.cohen_kappa_score(truth, predicted, labels=labels, weights=weights)


def classification(seed: int, n: int, classes: int, skill: float = 1.5):
    rng = np.random.default_rng(seed)
    truth = rng.choice(classes, size=n, p=rng.dirichlet(np.ones(classes)))
    scores = rng.normal(size=(n, classes)) + skill * np.eye(classes)[truth]
    return truth, scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))


@pytest.mark.parametrize("name", NAMES)
@given(seed=st.integers(0, 10**6), n=st.integers(30, 200), classes=st.integers(3, 9))
@settings(max_examples=25, deadline=None)
def test_equal_to_scikit_learn_also_where_classes_are_absent(name, seed, n, classes):
    truth, log_p = classification(seed, n, classes)
    if len(np.unique(truth)) < 2:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns of classes it does not meet
        expected = sklearn_value(name, truth, log_p)
    np.testing.assert_allclose(measure(name, truth, log_p)[0], expected, rtol=0, atol=1e-12)


def test_auroc_counts_ties_as_half():
    rng = np.random.default_rng(3)
    truth = rng.integers(0, 4, 80)
    scores = rng.integers(0, 3, (80, 4)) / 4 + 0.05
    scores /= scores.sum(axis=1, keepdims=True)
    expected = sk.roc_auc_score(truth, scores, multi_class="ovo", labels=range(4))
    assert abs(measure("auroc", truth, scores)[0] - expected) < 1e-12


def test_binary_auroc_is_the_ordinary_one():
    truth, log_p = classification(5, 90, 2)
    expected = sk.roc_auc_score(truth, log_p[:, 1])
    assert abs(measure("auroc", truth, log_p)[0] - expected) < 1e-12


def test_weightings_equal_scikit_learn_on_repeated_slides():
    truth, log_p = classification(11, 60, 5)
    group = np.arange(60) // 3
    weights = np.random.default_rng(0).multinomial(20, np.full(20, 1 / 20), size=40).astype(np.float32)
    for name in NAMES:
        drawn = measure(name, truth, log_p, Weighting(weights, group))
        for value, row in zip(drawn, weights, strict=True):
            index = np.repeat(np.arange(60), row[group].astype(int))
            if name == "balanced_accuracy_10":  # its classes are those of the whole test set
                index = index[np.bincount(truth, minlength=5)[truth[index]] >= 10]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                reference = "balanced_accuracy" if name == "balanced_accuracy_10" else name
                expected = sklearn_value(reference, truth[index], log_p[index])
            assert abs(value - expected) < 1e-12, name


def test_auroc_by_definition_in_a_slow_loop():
    truth, log_p = classification(2, 40, 4)
    total, pairs = 0.0, 0
    for k in np.unique(truth):
        for j in np.unique(truth):
            if k == j:
                continue
            own, other = log_p[truth == k, k], log_p[truth == j, k]
            total += np.mean([(s > t) + 0.5 * (s == t) for s in own for t in other])
            pairs += 1
    assert abs(auroc(truth, log_p, Weighting.once(40))[0] - total / pairs) < 1e-12


def test_undefined_is_nan_never_a_number():
    one_class = np.zeros(12, dtype=np.int64)
    always_right = np.log(np.tile([0.8, 0.1, 0.1], (12, 1)))
    for name in ("kappa_quadratic", "kappa_linear", "kappa_unweighted", "auroc"):
        assert np.isnan(measure(name, one_class, always_right)[0])
    assert np.isnan(measure("balanced_accuracy_10", one_class[:9], always_right[:9])[0])
    assert measure("balanced_accuracy_10", one_class, always_right)[0] == 1


def test_weighted_kappas_depend_on_the_label_order_and_the_unweighted_does_not():
    truth, log_p = classification(7, 150, 6)
    swapped = np.array([3, 0, 5, 1, 2, 4])
    moved = np.empty(6, dtype=np.int64)
    moved[swapped] = np.arange(6)
    for name, same in (("kappa_quadratic", False), ("kappa_linear", False), ("kappa_unweighted", True)):
        before, after = measure(name, truth, log_p)[0], measure(name, moved[truth], log_p[:, swapped])[0]
        assert (abs(before - after) < 1e-12) == same


def test_kappa_is_frozen_over_the_trained_label_set():
    truth = classification(9, 60, 8)[0]
    keep = np.isin(truth, (1, 4, 6))
    sub = Confusion.of(truth[keep], np.zeros(keep.sum(), dtype=np.int64) + 4, 8, Weighting.once(keep.sum()))
    expected = sk.cohen_kappa_score(truth[keep], np.full(keep.sum(), 4), labels=range(8), weights="quadratic")
    assert abs(COUNTED["kappa_quadratic"](sub)[0] - expected) < 1e-12


@pytest.mark.skipif(not GOLDEN.is_file(), reason="golden values are not beside this checkout")
def test_golden_values():
    golden = json.loads(GOLDEN.read_text())
    truth, p = np.array(golden["targets"]), np.array(golden["probs"])
    order = np.array(golden["label_permutation"])
    names = {
        "acc": "accuracy",
        "bacc": "balanced_accuracy",
        "kappa_titan_quadratic": "kappa_quadratic",
        "nw_kappa_titan_linear": "kappa_linear",
        "kappa_unweighted": "kappa_unweighted",
        "weighted_f1": "weighted_f1",
        "auroc_ovo_macro": "auroc",
    }
    assert (p.argmax(axis=1) == golden["preds"]).all()
    for ours, log_p, expected in (
        (truth, np.log(p), golden["expected"]),
        (truth, np.log(p).astype(np.float32), golden["expected"]),
        (order[truth], np.log(p)[:, np.argsort(order)], golden["expected_after_label_permutation"]),
    ):
        for theirs, name in names.items():
            assert abs(measure(name, ours, log_p)[0] - expected[theirs]) < 1e-12, name
        auroc_ovr = np.mean(
            [measure("auroc", 1 * (ours == k), np.stack([-log_p[:, k], log_p[:, k]], 1))[0] for k in range(5)]
        )
        assert abs(auroc_ovr - expected["auroc_ovr_macro"]) < 1e-12
        counted = Confusion.of(ours, log_p.argmax(axis=1), 5, Weighting.once(120))
        macro_f1 = np.mean(2 * counted.hits / (counted.rows + counted.columns))
        assert abs(macro_f1 - expected["macro_f1"]) < 1e-12
        assert abs(-np.mean(log_p[np.arange(120), ours]) - expected["log_loss"]) < 1e-7
