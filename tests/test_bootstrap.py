"""The patient bootstrap against scikit-learn draw by draw, and intervals against scipy and known coverage."""

import warnings

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from slimbench.statistics.bootstrap import bootstrap, groups_of, jackknife
from slimbench.statistics.estimates import estimate, titan_kappas
from slimbench.statistics.intervals import interval, standard_error
from slimbench.statistics.means import (
    clustered_error,
    mean_estimate,
    median_rank_estimate,
    share_estimate,
)
from slimbench.statistics.metrics import NAMES, measure

SK = {
    "accuracy": lambda y, p, s, k: sk.accuracy_score(y, p),
    "balanced_accuracy": lambda y, p, s, k: sk.balanced_accuracy_score(y, p),
    "weighted_f1": lambda y, p, s, k: sk.f1_score(y, p, labels=range(k), average="weighted", zero_division=0),
    "kappa_quadratic": lambda y, p, s, k: sk.cohen_kappa_score(y, p, labels=range(k), weights="quadratic"),
    "kappa_linear": lambda y, p, s, k: sk.cohen_kappa_score(y, p, labels=range(k), weights="linear"),
    "kappa_unweighted": lambda y, p, s, k: sk.cohen_kappa_score(y, p, labels=range(k)),
    "auroc": lambda y, p, s, k: sk.roc_auc_score(y, s, labels=range(k), multi_class="ovo"),
}


def predictions(seed: int, n: int, classes: int, skill: float = 2.0, per_patient: int = 2):
    rng = np.random.default_rng(seed)
    truth = rng.choice(classes, size=n, p=rng.dirichlet(2 * np.ones(classes)))
    scores = rng.normal(size=(n, classes)) + skill * np.eye(classes)[truth]
    log_p = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
    return truth, log_p, [f"p{number // per_patient}" for number in range(n)]


def test_every_draw_equals_scikit_learn_on_the_repeated_slides():
    truth, log_p, patients = predictions(0, 90, 6)
    weighting = bootstrap(patients, draws=30)
    ours = measure(SK, truth, log_p, weighting)
    rows = weighting.weights[:, weighting.group].astype(int)
    p = np.exp(log_p) / np.exp(log_p).sum(axis=1, keepdims=True)
    for draw, weights in enumerate(rows):
        index = np.repeat(np.arange(90), weights)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # scikit-learn warns of classes that a draw lacks
            for name, reference in SK.items():
                expected = reference(truth[index], log_p[index].argmax(axis=1), p[index], 6)
                assert abs(ours[name][draw] - expected) < 1e-12, name


def test_patients_are_drawn_whole_with_replacement_and_reproducibly():
    patients = ["b", "a", "b", "c", "a", "b"]
    weighting = bootstrap(patients, draws=500)
    assert weighting.group.tolist() == [1, 0, 1, 2, 0, 1]
    assert (weighting.weights.sum(axis=1) == 3).all() and len(weighting) == 500
    assert np.allclose(weighting.weights.mean(axis=0), 1, atol=0.1)
    assert (weighting.weights == bootstrap(patients, draws=500).weights).all()
    assert (weighting.weights != bootstrap([*patients[:-1], "a"], draws=500).weights).any()


def test_jackknife_leaves_out_one_patient_at_a_time():
    truth, log_p, patients = predictions(1, 40, 3)
    left_out = measure(["accuracy"], truth, log_p, jackknife(patients))["accuracy"]
    right, group = truth == log_p.argmax(axis=1), groups_of(patients)
    np.testing.assert_allclose(left_out, [right[group != g].mean() for g in range(20)], atol=1e-12)


def test_clustering_widens_the_interval_of_patients_with_many_slides():
    rng = np.random.default_rng(2)
    right = np.repeat(rng.random(40) < 0.7, 5)
    truth = np.zeros(200, dtype=np.int64)
    truth[::2] = 1
    log_p = np.log(np.where(np.eye(2)[np.where(right, truth, 1 - truth)] > 0, 0.9, 0.1))
    clustered = estimate(truth, log_p, [f"p{i // 5}" for i in range(200)], ["a", "b"]).metrics[0]
    apart = estimate(truth, log_p, [f"p{i}" for i in range(200)], ["a", "b"]).metrics[0]
    assert clustered.value == apart.value
    assert (clustered.high - clustered.low) > 1.8 * (apart.high - apart.low)


def test_logit_and_fisher_intervals_are_the_stated_formulas():
    rng = np.random.default_rng(0)
    draws = rng.normal(0.8, 0.05, 5_000)
    error = draws.std() * np.sqrt(50 / 49)
    assert standard_error(draws, 50) == pytest.approx(error, abs=1e-15)
    share = interval("weighted_f1", 0.8, draws, groups=50, n=60)
    ends = np.log(0.8 / 0.2) + np.array([-1, 1]) * 1.959964 * error / (0.8 * 0.2)
    np.testing.assert_allclose([share.low, share.high], 1 / (1 + np.exp(-ends)), atol=1e-7)
    kappa = interval("kappa_linear", 0.8, draws, groups=50, n=60)
    ends = np.arctanh(0.8) + np.array([-1, 1]) * 1.959964 * error / (1 - 0.8**2)
    np.testing.assert_allclose([kappa.low, kappa.high], np.tanh(ends), atol=1e-7)


def test_values_at_the_ends_are_held_half_a_slide_away_and_stay_inside():
    draws = np.r_[np.ones(900), np.full(100, 0.99)]
    for name in ("balanced_accuracy", "kappa_quadratic"):
        found = interval(name, 1.0, draws, groups=30, n=60)
        assert 0.9 < found.low < 1 and found.high == 1.0
    at_zero = interval("auroc", 0.0, 1 - draws, groups=30, n=60)
    assert at_zero.low == 0.0 < at_zero.high < 0.1


def test_wilson_is_scipys_at_the_effective_number_of_slides():
    right = 50
    error = np.sqrt(0.8 * 0.2 / 62.5)
    draws = 0.8 + error * np.sqrt(24 / 25) * np.array([-1.0, 1.0])
    found = interval("accuracy", 0.8, draws, groups=25, n=100, proportion=True, method="wilson")
    expected = stats.binomtest(right, 62).proportion_ci(method="wilson")
    scaled = interval("accuracy", 50 / 62, 50 / 62 + 0 * draws, groups=62, n=62, proportion=True)
    np.testing.assert_allclose([scaled.low, scaled.high], [expected.low, expected.high], atol=1e-12)
    z, n, p = 1.959964, 62.5, 0.8
    middle, half = (p + z**2 / 2 / n), z * np.sqrt(p * (1 - p) / n + z**2 / 4 / n**2)
    np.testing.assert_allclose(
        [found.low, found.high], np.array([middle - half, middle + half]) / (1 + z**2 / n), atol=1e-7
    )


def test_percentile_and_bca_agree_with_scipy():
    rng = np.random.default_rng(4)
    values = rng.exponential(size=40)
    weights = bootstrap([f"{i:02}" for i in range(40)], draws=20_000).weights
    draws, left_out = weights @ values / 40, (values.sum() - values) / 39
    for method, theirs in (("percentile", "percentile"), ("bca", "BCa")):
        found = interval("x", values.mean(), draws, groups=40, n=40, method=method, left_out=left_out)
        expected = stats.bootstrap(
            (values,), np.mean, n_resamples=20_000, method=theirs, rng=np.random.default_rng(5)
        ).confidence_interval
        np.testing.assert_allclose([found.low, found.high], [expected.low, expected.high], atol=0.02)
    assert abs(expected.low - np.quantile(draws, 0.025)) > 0.04  # the correction is not nothing


def test_bca_falls_back_and_says_so_where_all_draws_lie_on_one_side():
    draws = np.linspace(0.5, 0.6, 100)
    found = interval("auroc", 0.9, draws, groups=20, n=40, method="bca", left_out=np.full(20, 0.9))
    usual = interval("auroc", 0.9, draws, groups=20, n=40)
    assert (found.low, found.high) == (usual.low, usual.high) and "bca undefined" in found.note


def test_no_interval_comes_with_its_reason():
    same = np.full(100, 0.7)
    assert interval("auroc", 0.7, same, groups=9, n=9).low is None
    assert "same value" in interval("auroc", 0.7, same, groups=9, n=9).note
    assert "one patient" in interval("accuracy", 0.7, same, groups=1, n=9, proportion=True).note
    assert "undefined in every" in interval("kappa_linear", 0.7, same * np.nan, groups=9, n=9).note


def test_draws_without_a_value_are_left_out_of_the_spread():
    draws = np.r_[np.random.default_rng(0).normal(0.5, 0.1, 900), np.full(100, np.nan)]
    found = interval("kappa_linear", 0.5, draws, groups=40, n=40)
    assert found == interval("kappa_linear", 0.5, draws[:900], groups=40, n=40)


def test_all_right_gives_wilson_for_accuracy_and_a_reason_for_the_others():
    truth = np.arange(30) % 3
    log_p = np.log(0.8 * np.eye(3)[truth] + 0.05)
    found = {m.name: m for m in estimate(truth, log_p, [f"p{i}" for i in range(30)], list("abc")).metrics}
    expected = stats.binomtest(30, 30).proportion_ci(method="wilson")
    assert found["accuracy"].low == pytest.approx(expected.low, abs=1e-12)
    assert found["balanced_accuracy"].value == 1 and found["balanced_accuracy"].low is None
    assert "same value" in found["balanced_accuracy"].note


def test_undefined_metrics_are_none_with_a_reason_and_the_others_stand():
    truth, patients = np.zeros(8, dtype=np.int64), [f"p{i}" for i in range(8)]
    log_p = np.log(np.tile([0.7, 0.2, 0.1], (8, 1)))
    found = {m.name: m for m in estimate(truth, log_p, patients, list("abc")).metrics}
    assert found["accuracy"].value == found["balanced_accuracy"].value == 1
    for name in ("auroc", "kappa_quadratic", "kappa_linear", "kappa_unweighted", "balanced_accuracy_10"):
        assert found[name].value is None and found[name].note.startswith("undefined")
    assert "absent: b, c" in found["balanced_accuracy"].note


def test_absent_and_missing_classes_are_named_and_counted():
    truth, log_p, patients = predictions(6, 80, 5)
    truth = np.arange(80) % 5
    keep = truth != 2
    found = estimate(truth[keep], log_p[keep], list(np.array(patients)[keep]), list("abcde"))
    notes = {m.name: m.note or "" for m in found.metrics}
    assert "4 classes present; absent: c" in notes["auroc"] and "absent: c" in notes["balanced_accuracy"]
    assert found.facts["absent_classes"] == ["c"]
    rare = np.r_[truth[keep][:20], [2]]
    once = estimate(rare, log_p[:21], [str(i) for i in range(21)], list("abcde"))
    assert 0.3 < once.facts["share_of_resamples_missing_a_class"] <= 1  # one slide is missed by (1 - 1/21)^21


def test_small_test_sets_are_called_small_and_large_ones_are_not():
    for n, small in ((63, True), (150, False)):
        truth, log_p, patients = predictions(7, n, 4)
        notes = {m.name: m.note or "" for m in estimate(truth, log_p, patients, list("abcd")).metrics}
        for name in ("balanced_accuracy", "kappa_quadratic", "auroc"):
            assert ("small test set" in notes[name]) == small
        assert "small test set" not in notes["accuracy"]


def test_an_interval_covers_the_population_value_about_as_often_as_it_says():
    population = predictions(8, 20_000, 5, per_patient=1)
    values = {
        name: value[0] for name, value in measure(NAMES, population[0][:4000], population[1][:4000]).items()
    }
    rng, covered = np.random.default_rng(0), {name: 0 for name in ("accuracy", "kappa_linear", "weighted_f1")}
    for _ in range(150):
        rows = rng.choice(4_000, 120)
        found = estimate(
            population[0][rows], population[1][rows], [str(i) for i in range(120)], list("abcde"), draws=300
        )
        for metric in found.metrics:
            if metric.name in covered:
                covered[metric.name] += metric.low <= values[metric.name] <= metric.high
    for name, count in covered.items():
        assert count / 150 > 0.89, (name, count)


def test_titan_kappas_rank_the_classes_that_occur():
    truth, predicted = np.array([0, 4, 4, 7, 0]), np.array([0, 4, 7, 7, 4])
    log_p = np.eye(9)[predicted]
    found = titan_kappas(truth, log_p)
    assert found["kappa"] == pytest.approx(sk.cohen_kappa_score(truth, predicted, weights="quadratic"))
    assert found["nw_kappa"] == pytest.approx(sk.cohen_kappa_score(truth, predicted, weights="linear"))
    assert titan_kappas(0 * truth, np.eye(9)[0 * predicted]) == {"kappa": None, "nw_kappa": None}
    assert found["kappa"] != pytest.approx(measure(["kappa_quadratic"], truth, log_p)["kappa_quadratic"][0])


def test_clustered_error_is_what_the_patient_bootstrap_tends_to():
    rng = np.random.default_rng(1)
    patients = [f"p{i}" for i in rng.integers(0, 150, 400)]
    effect = dict(zip(sorted(set(patients)), rng.normal(size=150), strict=False))
    values = np.array([effect[patient] for patient in patients]) + rng.normal(size=400)
    weighting = bootstrap(patients)
    rows = weighting.weights[:, weighting.group].astype(np.float64)
    drawn = (rows @ values) / rows.sum(axis=1)
    groups = weighting.weights.shape[1]
    assert clustered_error(values, patients) == pytest.approx(standard_error(drawn, groups), rel=0.03)
    alone = values.std() / np.sqrt(399)
    assert clustered_error(values, [str(i) for i in range(400)]) == pytest.approx(alone, rel=1e-9)
    assert clustered_error(values, patients) > 1.3 * alone


def test_means_over_queries():
    rng = np.random.default_rng(3)
    hits, patients = (rng.random(400) < 0.3).astype(float), [str(i // 2) for i in range(400)]
    share = share_estimate("recall", hits, patients)
    assert share.low < share.value == hits.mean() < share.high and share.high - share.low < 0.12
    none = share_estimate("recall", 0 * hits, patients)
    assert none.low == 0 < none.high < 0.05  # Wilson over 200 patients
    ranks = rng.geometric(0.05, 400).astype(float)
    mean = mean_estimate("rank", ranks, patients, 1, 400)
    half = 1.96 * ranks.std() / np.sqrt(400)
    assert mean.high - mean.value == pytest.approx(half, rel=0.15)
    median = median_rank_estimate("rank", ranks, patients)
    exact = np.sort(ranks)[[int(200 - 1.96 * 10), int(200 + 1.96 * 10)]]
    assert abs(median.low - exact[0]) <= 2 and abs(median.high - exact[1]) <= 2
    for same in (mean_estimate("kappa", np.full(4, 0.1) * 3, list("abcd"), -1, 1),
                 mean_estimate("x", np.array([0.1, 0.3, 0.3, 0.1]), list("aabb"), 0, 1),
                 median_rank_estimate("rank", np.ones(4), list("abcd"))):  # fmt: skip
        assert (same.low, same.high) == (None, None)
        assert same.note == "no interval: every resample gives the same value"
    one = mean_estimate("rank", ranks, ["p"] * 400, 1, 400)
    assert one.low is None and "one patient" in one.note
