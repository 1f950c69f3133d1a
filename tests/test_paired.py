"""Paired comparisons against scipy, brute force and simulated truth; ranks; Holm."""

from itertools import product

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

from slimbench.errors import UsageError
from slimbench.statistics import paired
from slimbench.statistics.metrics import COUNTED, measure
from slimbench.statistics.paired import align, compare, compare_queries
from slimbench.statistics.ranks import rank_intervals
from slimbench.statistics.significance import holm, mcnemar, smallest_detectable

CLASSES = list("abcd")


def system(seed: int, n: int, *, truth_seed: int = 0, skill: float = 1.5, per_patient: int = 1, shared=None):
    """Predictions of one system; `shared` [n, 4] is noise that it has in common with another."""
    truth = np.random.default_rng(truth_seed).integers(0, 4, n)
    noise = np.random.default_rng(seed).normal(size=(n, 4))
    logits = skill * np.eye(4)[truth] + (noise if shared is None else 0.9 * shared + 0.3 * noise)
    log_p = (logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))).astype(np.float32)
    return table(truth, log_p, per_patient)


def table(truth, log_p, per_patient: int = 1) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "slide_id": [f"s{i:05}" for i in range(len(truth))],
            "patient": [f"p{i // per_patient:05}" for i in range(len(truth))],
            "label": [CLASSES[k] for k in truth],
            "predicted": [CLASSES[k] for k in log_p.argmax(axis=1)],
            "log_probabilities": list(log_p),
        }
    )


def two(n: int, per_patient: int = 1, gap: float = 0.0, seed: int = 0):
    shared = np.random.default_rng(seed).normal(size=(n, 4))
    return (
        system(seed + 1, n, truth_seed=seed, skill=1.5 + gap, per_patient=per_patient, shared=shared),
        system(seed + 2, n, truth_seed=seed, per_patient=per_patient, shared=shared),
    )


def arrays(predictions: pd.DataFrame):
    return predictions["label"].map(CLASSES.index).to_numpy(), np.stack(predictions["log_probabilities"])


def test_mcnemar_is_the_exact_binomial_test():
    for wins, losses in ((38, 42), (0, 6), (5, 0), (1, 1), (7, 2)):
        assert mcnemar(wins, losses) == pytest.approx(binomtest(wins, wins + losses).pvalue, abs=1e-12)
    assert mcnemar(38, 42) == pytest.approx(0.738, abs=5e-4)
    assert mcnemar(0, 0) == 1
    assert mcnemar(0, 6) < 0.05 < mcnemar(0, 5)


def test_accuracy_is_compared_by_bonett_price_and_mcnemar():
    first, second = two(120, gap=0.4)
    found = compare(first, second, CLASSES, "accuracy")
    right = [(t["label"] == t["predicted"]).to_numpy() for t in (first, second)]
    b, c = (right[0] & ~right[1]).sum(), (right[1] & ~right[0]).sum()
    p1, p2 = (b + 1) / 122, (c + 1) / 122
    half = 1.959964 * np.sqrt((p1 + p2 - (p1 - p2) ** 2) / 122)
    assert found.difference == pytest.approx((b - c) / 120)
    assert (found.low, found.high) == pytest.approx((p1 - p2 - half, p1 - p2 + half), abs=1e-6)
    assert found.p == pytest.approx(mcnemar(b, c)) and found.discordant == b + c
    assert found.one_slide_step == 1 / 120 and found.n == 120


def test_swapping_patients_of_one_slide_is_mcnemars_test(monkeypatch):
    monkeypatch.setattr(paired, "DRAWS", 20_000)
    for seed in range(15):
        first, second = two(40, seed=seed, gap=0.3)
        pair = align([first, second], CLASSES)
        right = [(t["label"] == t["predicted"]).to_numpy() for t in (first, second)]
        b, c = (right[0] & ~right[1]).sum(), (right[1] & ~right[0]).sum()
        if (first["predicted"] != second["predicted"]).sum() <= 14:
            assert paired._swap_counts("accuracy", pair, 0, 1) == pytest.approx(mcnemar(b, c), abs=1e-12)


@pytest.mark.parametrize("metric", [*COUNTED, "auroc"])
def test_swaps_are_those_of_brute_force(metric, monkeypatch):
    first, second = two(48, per_patient=6, seed=5, gap=1.0)
    monkeypatch.setattr(paired, "_AUROC_SWAPS", 300)
    truth, one = arrays(first)
    other, group = arrays(second)[1], np.arange(48) // 6
    differences = []
    for bits in product((0, 1), repeat=8):
        swapped = np.array(bits)[group][:, None] == 1
        values = [
            measure([metric], truth, np.where(swapped, x, y))[metric][0]
            for x, y in ((other, one), (one, other))
        ]
        differences.append(values[0] - values[1])
    expected = np.mean(~(np.abs(differences) < abs(differences[0]) - 1e-12))
    assert compare(first, second, CLASSES, metric).p == pytest.approx(expected, abs=1e-12)


def test_drawn_swaps_approach_all_swaps(monkeypatch):
    pair = align(two(60, per_patient=4, seed=3, gap=0.5), CLASSES)
    monkeypatch.setattr(paired, "DRAWS", 2**15)
    exact = paired._swap_counts("weighted_f1", pair, 0, 1)
    monkeypatch.setattr(paired, "DRAWS", 4_000)
    assert paired._swap_counts("weighted_f1", pair, 0, 1) == pytest.approx(exact, abs=0.03)
    for patients, draws, patterns in ((12, 5_000, 2**12), (13, 5_000, 5_000)):
        drawn = np.concatenate(list(paired._swaps(patients, draws, ["p"])))
        assert drawn.shape == (patterns, patients) and abs(drawn.mean() - 0.5) < 0.02


@pytest.mark.parametrize("metric", [*COUNTED, "auroc"])
def test_a_comparison_turned_round_changes_its_sign_and_nothing_else(metric):
    first, second = two(100, per_patient=2, gap=0.3)
    one, other = compare(first, second, CLASSES, metric), compare(second, first, CLASSES, metric)
    assert one.difference == pytest.approx(-other.difference)
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low), abs=1e-12)
    assert one.p == pytest.approx(other.p, abs=1e-12) and one.low < one.difference < one.high


def test_a_system_against_itself_differs_by_nothing():
    first, _ = two(80, per_patient=2)
    for metric in (*COUNTED, "auroc"):
        found = compare(first, first, CLASSES, metric)
        assert found.difference == 0 and found.p == 1 and found.discordant == 0
        assert found.low <= 0 <= found.high and found.smallest_detectable is None


def test_one_slide_step_is_the_rms_change_of_brute_force():
    first, _ = two(30)
    truth, log_p = arrays(first)
    base = measure(["kappa_linear"], truth, log_p)["kappa_linear"][0]
    changes = []
    for slide in range(30):
        moved = log_p.copy()
        moved[slide, moved[slide].argmax()] = -np.inf
        changes.append(measure(["kappa_linear"], truth, moved)["kappa_linear"][0] - base)
    found = compare(first, first, CLASSES, "kappa_linear")
    assert found.one_slide_step == pytest.approx(np.sqrt(np.mean(np.square(changes))), abs=1e-12)
    assert found.high == pytest.approx(1.959964 * np.sqrt(2) * found.one_slide_step, abs=1e-6)


def test_several_slides_of_a_patient_widen_the_interval_and_leave_mcnemar():
    rng = np.random.default_rng(0)
    truth = np.repeat(rng.integers(0, 4, 30), 6)
    wrong = (truth + 1) % 4
    sides = [np.repeat(rng.random(30) < 0.7, 6) for _ in range(2)]
    tables = [
        table(truth, np.log(0.9 * np.eye(4)[np.where(s, truth, wrong)] + 0.025).astype("f4"), 6)
        for s in sides
    ]
    found = compare(*tables, CLASSES, "accuracy")
    alone = compare(*(t.assign(patient=t["slide_id"]) for t in tables), CLASSES, "accuracy")
    assert found.high - found.low > 1.5 * (alone.high - alone.low)
    assert found.p > alone.p


@pytest.mark.parametrize(
    ("metric", "n"), [("accuracy", 63), ("balanced_accuracy", 63), ("kappa_quadratic", 63)]
)
def test_intervals_cover_and_tests_hold_their_level_on_63_slides(metric, n, monkeypatch):
    monkeypatch.setattr(paired, "DRAWS", 400)
    covered = rejected = 0
    for seed in range(120):
        found = compare(*two(n, seed=10 * seed), CLASSES, metric)
        covered += found.low <= 0 <= found.high
        rejected += found.p < 0.05
    assert covered / 120 >= 0.93 and rejected / 120 <= 0.08


def test_a_real_difference_is_found():
    first, second = two(300, gap=1.5)
    for metric in (*COUNTED, "auroc"):
        found = compare(first, second, CLASSES, metric)
        assert found.p < 0.01 and found.low > 0, metric


def test_smallest_detectable_difference_of_the_published_sizes():
    for n, at_5, at_10, at_20 in (
        (63, None, None, 0.159),
        (232, 0.042, 0.060, 0.085),
        (573, 0.028, 0.038, 0.054),
        (1241, 0.019, 0.026, 0.037),
        (2319, 0.014, 0.019, 0.027),
    ):
        for discordance, expected in ((0.05, at_5), (0.10, at_10), (0.20, at_20)):
            found = smallest_detectable(n, discordance)
            assert found == (None if expected is None else pytest.approx(expected, abs=1e-3))
    assert smallest_detectable(100, 0.0) is None


def test_smallest_detectable_has_the_power_it_claims():
    difference, rng = smallest_detectable(232, 0.1), np.random.default_rng(0)
    differing = rng.binomial(232, 0.1, 4_000)
    wins = rng.binomial(differing, (1 + difference / 0.1) / 2)
    power = np.mean([mcnemar(w, m - w) < 0.05 for w, m in zip(wins, differing, strict=True)])
    assert power == pytest.approx(0.8, abs=0.025)


def test_holm_adjusts_step_down_in_the_order_given():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.6]) == [1.0, 1.0] and holm([]) == [] and holm([0.2]) == [0.2]


def test_tables_of_different_slides_or_labels_are_refused():
    first, second = two(20)
    with pytest.raises(UsageError, match="s00019 is not in both"):
        compare(first, second[:-1], CLASSES)
    relabelled = second.assign(label="a")
    with pytest.raises(UsageError, match="different labels"):
        compare(first, relabelled, CLASSES)


def test_the_order_of_rows_does_not_matter():
    first, second = two(50, per_patient=2)
    shuffled = second.sample(frac=1, random_state=0)
    assert compare(first, shuffled, CLASSES) == compare(first, second, CLASSES)


def test_undefined_metrics_are_none():
    one_class = two(20)[0].assign(label="a")
    found = compare(one_class, one_class, CLASSES, "auroc")
    assert found.difference is found.low is found.p is None


def test_all_slides_of_one_patient_give_a_difference_and_no_more():
    first, second = (t.assign(patient="p") for t in two(20, gap=1.0))
    found = compare(first, second, CLASSES, "accuracy")
    assert found.difference is not None and found.low is found.p is None


def queries(seed: int, n: int = 60, shift: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    rows = []
    for direction in ("i2t", "t2i"):
        better = np.clip(rng.integers(0, 40, n) - shift, 0, None)
        rows.append(
            pd.DataFrame(
                {
                    "direction": direction,
                    "slide_id": [f"s{i:03}" for i in range(n)],
                    "patient": [f"p{i // 2:03}" for i in range(n)],
                    "better": better,
                    "tied": 0,
                    "gallery": 60,
                }
            )
        )
    return pd.concat(rows, ignore_index=True)


def test_means_over_queries_are_compared_by_patient():
    first, second = queries(1, shift=12), queries(2)
    for metric in ("i2t_recall_at_10", "t2i_mrr"):
        found = compare_queries(first, second, metric)
        assert found.difference > 0 and found.p < 0.05 and found.low > 0 and found.n == 60
    assert compare_queries(first, second, "i2t_mean_rank").difference < 0
    same = compare_queries(first, first, "i2t_mrr")
    assert same.difference == 0 and same.p == 1 and same.discordant == 0
    with pytest.raises(UsageError, match="no mean over queries"):
        compare_queries(first, second, "i2t_median_rank")
    with pytest.raises(UsageError, match="different queries"):
        compare_queries(first, second[second["slide_id"] != "s003"], "i2t_mrr")


def intervals_of_ranks(tables: list[pd.DataFrame]) -> list[tuple[float, float]]:
    together = align(tables, CLASSES)
    drawn = np.stack([together.drawn("balanced_accuracy", which) for which in range(len(tables))])
    return list(zip(*rank_intervals(drawn), strict=True))


def test_clones_share_the_first_ranks_and_a_poor_system_stands_last():
    shared = np.random.default_rng(0).normal(size=(200, 4))
    good, clone = (system(seed, 200, skill=3.0, shared=shared) for seed in (1, 2))
    *first, poor = intervals_of_ranks([good, clone, system(3, 200, skill=0.3)])
    assert poor == (3, 3)
    assert all(1 <= low <= high <= 2 for low, high in first) and min(low for low, _ in first) == 1


def test_identical_systems_share_the_middle_rank():
    first, _ = two(40)
    assert intervals_of_ranks([first] * 3) == [(2, 2)] * 3
    assert intervals_of_ranks([first]) == [(1, 1)]
