"""Linear probes against scikit-learn driven to the minimum, and TITAN's rule against its plain loop."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from slimbench.errors import CohortError
from slimbench.statistics import logistic, probe
from slimbench.statistics.logistic import POLISH, LogisticPath, choose_penalty
from slimbench.statistics.probe import PENALTIES, Labelled, fit_probe
from slimbench.statistics.threads import one_thread

HIPT = Path(__file__).parents[2] / "shared" / "data" / "hipt-tcga"


def data(seed: int, n: int, dim: int, classes: int, signal: float = 1.0):
    """x [n, dim] of uneven scales, y [n] with every class."""
    rng = np.random.default_rng(seed)
    y = np.concatenate([np.arange(classes), rng.integers(0, classes, n - classes)])
    x = signal * rng.normal(size=(classes, dim))[y] + rng.normal(size=(n, dim))
    return x * np.logspace(-2, 1, dim) + 3, y


def minimum(x, y, penalty) -> LogisticRegression:
    """scikit-learn's optimum, reached by its own second-order solver."""
    model = LogisticRegression(C=1 / penalty, solver="newton-cg", tol=1e-8, max_iter=10_000)
    return model.fit(x, y)


@pytest.mark.parametrize("penalty", [0.01, 1.0, 100.0, 1e5])
@pytest.mark.parametrize(("n", "dim", "classes"), [(120, 12, 4), (120, 12, 2), (30, 60, 5)])
def test_the_minimum_is_scikit_learns_minimum(n, dim, classes, penalty):
    x, y = data(1, n, dim, classes)
    path = LogisticPath(x, y, classes)
    with one_thread():
        linear = path.linear(path.fit(penalty, path.start(), POLISH)[0])
        expected = minimum(x, y, penalty).predict_proba(x)
    np.testing.assert_allclose(np.exp(linear.log_probabilities(x)), expected, atol=5e-5)


def test_the_gradient_vanishes_at_the_minimum():
    x, y = data(2, 200, 20, 6)
    path = LogisticPath(x, y, 6)
    w, _ = path.fit(3.0, path.start(), POLISH)
    linear = path.linear(w)
    p = np.exp(linear.log_probabilities(x)) - np.eye(6)[y]
    gradient = (p.T @ (x - x.mean(axis=0)) + 3.0 * linear.weight) / 200
    assert np.abs(gradient).max() < 1e-4 and np.abs(p.mean(axis=0)).max() < 1e-5


def test_constant_and_repeated_features_change_nothing():
    x, y = data(3, 150, 10, 3)
    path = LogisticPath(x, y, 3)
    plain = path.linear(path.fit(1.0, path.start(), POLISH)[0]).log_probabilities(x)
    padded = np.concatenate([x, np.full((150, 2), 7.0)], axis=1)
    path = LogisticPath(padded, y, 3)
    assert path.axes.shape[1] == 10
    found = path.linear(path.fit(1.0, path.start(), POLISH)[0]).log_probabilities(padded)
    np.testing.assert_allclose(found, plain, atol=1e-5)


def test_features_without_variance_give_class_frequencies():
    y = np.array([0, 0, 0, 1])
    path = LogisticPath(np.ones((4, 3)), y, 2)
    linear = path.linear(path.fit(1.0, path.start(), POLISH)[0])
    np.testing.assert_allclose(np.exp(linear.log_probabilities(np.ones((1, 3))))[0], [0.75, 0.25], atol=1e-6)


def test_separable_classes_and_the_smallest_penalty_stay_finite():
    x, y = data(4, 60, 40, 4, signal=30)
    path = LogisticPath(x, y, 4)
    w, _ = path.fit(1e-5, path.start(), POLISH)
    assert torch.isfinite(w).all()
    assert (path.linear(w).log_probabilities(x).argmax(axis=1) == y).all()


def test_the_stopped_path_chooses_what_the_whole_grid_chooses(monkeypatch):
    x, y = data(5, 300, 30, 5, signal=0.4)
    val = (x[:100] + np.random.default_rng(0).normal(size=(100, 30)) * np.logspace(-2, 1, 30), y[:100])
    stopped = choose_penalty(x, y, 5, *val, PENALTIES)
    monkeypatch.setattr(logistic, "PATIENCE", len(PENALTIES))
    whole = choose_penalty(x, y, 5, *val, PENALTIES)
    assert len(stopped.losses) < len(whole.losses) == 45
    assert stopped.penalty == whole.penalty
    np.testing.assert_allclose(stopped.linear.weight, whole.linear.weight, atol=1e-4)
    by_scikit_learn = {
        penalty: log_loss(val[1], minimum(x, y, penalty).predict_proba(val[0]))
        for penalty in PENALTIES[24:40]
    }
    assert min(by_scikit_learn, key=by_scikit_learn.__getitem__) == stopped.penalty
    assert stopped.losses[stopped.penalty] == pytest.approx(min(by_scikit_learn.values()), abs=1e-5)


def test_a_loss_that_rises_before_anything_is_learned_does_not_end_the_path(monkeypatch):
    # Of this binary problem the validation loss falls, rises for eight penalties, and falls by a seventh.
    x, y = data(7, 200, 16, 2, signal=0.4)
    train, val = Labelled(x[:150], y[:150]), Labelled(x[150:], y[150:])
    losses = {
        penalty: log_loss(val.y, minimum(train.x, train.y, penalty).predict_proba(val.x))
        for penalty in PENALTIES
    }
    expected = min(losses, key=losses.__getitem__)
    assert fit_probe("titan-converged", train, val, 2).facts["penalty"] == expected
    monkeypatch.setattr(logistic, "LEARNED", np.inf)
    assert fit_probe("titan-converged", train, val, 2).facts["penalty"] > 1e4 > expected


def titan_plain(train: Labelled, val: Labelled):
    """TITAN's loop as published: every value from small to large, the first lowest loss wins."""
    best, chosen = np.inf, None
    for penalty in PENALTIES:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model = LogisticRegression(C=1 / penalty, max_iter=500).fit(train.x, train.y)
        loss = log_loss(val.y, model.predict_proba(val.x), labels=np.unique(train.y))
        if best > loss:
            best, chosen = loss, (penalty, model)
    return chosen


def smooth(classes: int):
    """A training and a validation set on whose path lbfgs converges."""
    rng = np.random.default_rng(7)
    y = rng.integers(0, classes, 400)
    x = rng.normal(size=(400, 10)) + 0.7 * rng.normal(size=(classes, 10))[y]
    return Labelled(x[:250], y[:250]), Labelled(x[250:], y[250:])


@pytest.mark.parametrize("stopping", [True, False])
@pytest.mark.parametrize("classes", [2, 4])
def test_titan_stopped_along_the_path_is_the_model_of_the_plain_loop(classes, stopping, monkeypatch):
    train, val = smooth(classes)
    with one_thread():
        penalty, model = titan_plain(train, val)
    if stopping:
        monkeypatch.setattr(probe, "_WHOLE", 0)
    found = fit_probe("titan", train, val, classes)
    assert found.facts["penalty"] == penalty
    assert (found.facts["penalties_fitted"] < 45) == stopping
    rows = slice(1, None) if classes == 2 else slice(None)
    assert (found.linear.weight[rows] == model.coef_).all()
    assert (found.linear.bias[rows] == model.intercept_).all()
    log_p = found.linear.log_probabilities(val.x)
    np.testing.assert_allclose(np.exp(log_p), model.predict_proba(val.x), atol=1e-12)
    assert found.facts["software"]["blas"] and "scikit-learn" in found.facts["software"]


def test_fixed_protocols_are_scikit_learns():
    x, y = data(8, 160, 8, 3)
    train, val = Labelled(x[:120], y[:120]), Labelled(x[120:], y[120:])
    with one_thread():
        bench = LogisticRegression(C=0.5, class_weight="balanced", max_iter=10_000).fit(train.x, train.y)
        uni = LogisticRegression(C=8 * 3 / 100, max_iter=1_000).fit(x, y)
    for protocol, model in (("patho-bench", bench), ("uni", uni)):
        found = fit_probe(protocol, train, val, 3).linear
        np.testing.assert_allclose(np.exp(found.log_probabilities(x)), model.predict_proba(x), atol=1e-12)


def test_a_choice_at_the_grid_edge_is_flagged():
    x, y = data(9, 80, 6, 2)
    noise = np.random.default_rng(1).permutation(y)
    facts = fit_probe("titan-converged", Labelled(x, noise), Labelled(x[::-1], noise), 2).facts
    assert facts["at_grid_edge"] == (facts["penalty"] in (PENALTIES[0], PENALTIES[-1]))
    val = Labelled(x, 1 - noise)  # the opposite labels: the strongest penalty is the best
    assert fit_probe("titan-converged", Labelled(x, noise), val, 2).facts["at_grid_edge"]


def test_validation_may_lack_a_class():
    x, y = data(10, 150, 8, 4)
    for protocol in ("titan", "titan-converged"):
        val = Labelled(x[y < 3][:40], y[y < 3][:40])
        assert fit_probe(protocol, Labelled(x, y), val, 4).linear.weight.shape == (4, 8)


def test_what_cannot_be_fitted_is_refused_before_fitting():
    x, y = data(11, 40, 5, 3)
    broken = x.copy()
    broken[17, 2] = np.nan
    with pytest.raises(CohortError, match="at least two"):
        fit_probe("titan", Labelled(x, 0 * y), Labelled(x, 0 * y), 1)
    with pytest.raises(CohortError, match="training slide 17 is not finite"):
        fit_probe("titan-converged", Labelled(broken, y), Labelled(x, y), 3)
    with pytest.raises(CohortError, match="no labelled validation slides"):
        fit_probe("titan-converged", Labelled(x, y), Labelled(x[:0], y[:0]), 3)


def test_one_thread_puts_the_number_back():
    before = torch.get_num_threads()
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


def test_grid_is_titans():
    assert len(PENALTIES) == 45
    np.testing.assert_allclose(PENALTIES[[0, -1]], [1e-5, 1e6])


def hipt(wide: bool):
    """Mean (or mean, std, max, min) of the regions of real TCGA slides, with TITAN's splits and labels."""
    splits = {"train": ("train", "train_rest"), "val": ("val",), "test": ("test",)}
    x, codes = {}, {}
    for split, files in splits.items():
        rows, names = [], []
        for file in files:
            pack = np.load(HIPT / f"{file}.npz")
            bags = np.split(pack["features"].astype(np.float64), pack["offsets"][1:-1])
            rows += [
                np.concatenate([b.mean(0), b.std(0), b.max(0), b.min(0)]) if wide else b.mean(0) for b in bags
            ]
            names += pack["oncotree"].tolist()
        x[split], codes[split] = np.array(rows), np.array(names)
    kept = codes["train"] != "PHC"
    x["train"], codes["train"] = x["train"][kept], codes["train"][kept]
    classes = np.unique(codes["train"])
    return {split: Labelled(x[split], np.searchsorted(classes, codes[split])) for split in splits}, len(
        classes
    )


@pytest.mark.slow
@pytest.mark.skipif(not HIPT.is_dir(), reason="the real TCGA features are not beside this checkout")
@pytest.mark.parametrize(
    ("wide", "penalty", "loss"), [(False, 56.23413251903491, 1.00198), (True, 177.82794100389228, 0.97019)]
)
def test_real_slides_give_the_measured_choice_on_any_number_of_threads(wide, penalty, loss, monkeypatch):
    parts, classes = hipt(wide)
    one = fit_probe("titan-converged", parts["train"], parts["val"], classes)
    assert one.facts["penalty"] == pytest.approx(penalty, rel=1e-12)
    assert one.facts["validation_log_loss"] == pytest.approx(loss, abs=1e-5)
    torch.set_num_threads(2)
    monkeypatch.setattr(probe, "one_thread", lambda: warnings.catch_warnings())
    two = fit_probe("titan-converged", parts["train"], parts["val"], classes)
    torch.set_num_threads(1)
    x = parts["test"].x
    assert (one.linear.log_probabilities(x).argmax(1) == two.linear.log_probabilities(x).argmax(1)).all()
