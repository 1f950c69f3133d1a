"""Fidelity, reconstruction and faithfulness on cases worked out by hand.

The encoder is the mean of the patches that a reducer leaves, so every embedding can be written down.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from slimbench import Merger, Plan, Pooler, Pruner, Reducer
from slimbench.cohorts.cohort import InMemoryCohort, Patches, Slide
from slimbench.encoders.mean_pool import MeanPool
from slimbench.encoders.slim import Slim
from slimbench.errors import CohortError
from slimbench.reducers.none import Nothing
from slimbench.reducers.norm import Norm
from slimbench.runs.evidence import CellEvidence
from slimbench.schedule import Input
from slimbench.statistics.bootstrap import bootstrap
from slimbench.statistics.embeddings import cosines, debiased_linear_cka, linear_cka, neighbour_overlap
from slimbench.statistics.intervals import standard_error
from slimbench.statistics.means import clustered_error
from slimbench.tasks.faithfulness import Faithfulness, sampled
from slimbench.tasks.fidelity import Fidelity
from slimbench.tasks.reconstruction import Reconstruction, nearest, reconstruction_error
from slimbench.tasks.unpruned import Unpruned
from slimbench.training.slides import SlideLoader

ROOT_HALF = 0.5**0.5


class Pairs(Merger):
    """Patches 0 and 1 become one token, 2 and 3, ..."""

    def assign(self, tokens, keep, context):
        return torch.arange(len(tokens)) // 2, None


class FirstOnly(Pooler):
    """One slot, which holds patch 0; reduces at any rate."""

    count = "fixed"

    def weights(self, tokens, keep, context):
        return torch.eye(len(tokens))[:1]


def evidence(
    reducer: type[Reducer], *slides: list, rate: float = 0.5, coords: list[list] | None = None
) -> CellEvidence:
    """Test slides of the patches `slides`, each of a patient of its own, before the mean."""
    named = {f"s{number}": np.array(rows, np.float32) for number, rows in enumerate(slides)}
    places = coords or [[[x, 0] for x in range(len(rows))] for rows in slides]
    patches = {
        name: Patches(rows, np.array(at, np.float32))
        for (name, rows), at in zip(named.items(), places, strict=True)
    }
    table = tuple(Slide(name, f"patient {name}", "test", len(rows)) for name, rows in named.items())
    dim = len(slides[0][0])
    cohort = InMemoryCohort("made", table, (), dim, "report", "0", patches)
    encoder = MeanPool(dim)
    encoder.place_reducers(reducer, Input())
    load = SlideLoader(cohort, torch.device("cpu"))
    return CellEvidence(cohort, encoder, None, None, load, Plan(Input(), rate), "fp32", lambda *_: None)


def values(result) -> dict[str, float | None]:
    return {metric.name: metric.value for metric in result.metrics}


def test_fidelity_by_hand() -> None:
    """The longer of two patches is kept; beside the mean of both."""
    given = evidence(Norm, [[2, 0], [0, 1]], [[0, 3], [0, 1]], [[4, 0], [0, 3]])
    result = Fidelity(neighbours=1).run(given)
    found = values(result)
    by_slide = [2 / 5**0.5, 1.0, 4 / 5]  # (2,0)|(1,.5); (0,3)|(0,2); (4,0)|(2,1.5)
    assert result.predictions["cosine"].tolist() == pytest.approx(by_slide)
    assert found["cosine"] == pytest.approx(np.mean(by_slide))
    # Nearest among (2,0) (0,3) (4,0): 2, 0, 0. Among (1,.5) (0,2) (2,1.5): 2 (1.41 to 1.80), 0, 0.
    assert result.predictions["neighbour_overlap"].tolist() == [1, 1, 1]
    z, w = np.array([[2, 0], [0, 3], [4, 0.0]]), np.array([[1, 0.5], [0, 2], [2, 1.5]])
    z, w = z - z.mean(0), w - w.mean(0)
    cross = sum(np.outer(a, b) for a, b in zip(z, w, strict=True))
    own, whole = (sum(np.outer(a, a) for a in x) for x in (z, w))
    expected = (cross**2).sum() / np.sqrt((own**2).sum() * (whole**2).sum())
    assert found["linear_cka"] == pytest.approx(expected) and 0.5 < expected < 1
    assert result.facts == {"neighbours": 1, "chance_neighbour_overlap": 0.5}
    for metric in result.metrics[:2]:
        assert metric.low <= metric.value <= metric.high <= 1


def test_linear_cka_by_hand() -> None:
    """One column: the squared correlation."""
    a, b = np.array([[1.0], [-1], [0]]), np.array([[6.0], [5], [4]])
    assert linear_cka(a, b)[0] == pytest.approx(1 / 4)


def test_linear_cka_is_blind_to_rotation_scale_and_place_and_undefined_for_a_point() -> None:
    a = np.random.default_rng(0).normal(size=(30, 4))
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(4, 4)))[0]
    value, pull = linear_cka(a, 3 * a @ turn + 7)
    assert value == pytest.approx(1) and np.abs(pull).max() < 1e-9
    assert np.isnan(linear_cka(a, np.ones((30, 2)))[0])


def test_the_error_of_linear_cka_is_that_of_the_patient_bootstrap() -> None:
    rng = np.random.default_rng(2)
    a = rng.normal(size=(400, 3)) * (3, 1, 1)
    b = a @ rng.normal(size=(3, 3)) + rng.normal(size=(400, 3))
    patients = [str(number // 2) for number in range(400)]
    value, pull = linear_cka(a, b)
    weighting = bootstrap(patients, 400)
    drawn = []
    for counts in weighting.weights[:, weighting.group].astype(int):
        drawn.append(linear_cka(np.repeat(a, counts, axis=0), np.repeat(b, counts, axis=0))[0])
    assert clustered_error(value + pull, patients) == pytest.approx(
        standard_error(np.array(drawn), 200), rel=0.15
    )


def hsic(a: np.ndarray, b: np.ndarray) -> float:
    """Song et al. (2012): the mean of K_ij (L_ij + L_kl - 2 L_ik) over all i, j, k, l that differ."""
    k, l = a @ a.T, b @ b.T
    terms = [
        k[i, j] * (l[i, j] + l[q, r] - 2 * l[i, q]) for i, j, q, r in itertools.permutations(range(len(a)), 4)
    ]
    return float(np.mean(terms))


def test_debiased_linear_cka_is_that_of_the_unbiased_hsic_and_its_pull_the_jackknifes() -> None:
    rng = np.random.default_rng(4)
    a = rng.normal(size=(7, 3)) + 5
    b = a @ rng.normal(size=(3, 10)) + 2 * rng.normal(size=(7, 10))

    def slow(rows: list[int]) -> float:
        x, y = a[rows], b[rows]
        return hsic(x, y) / (hsic(x, x) * hsic(y, y)) ** 0.5

    value, pull = debiased_linear_cka(a, b)
    assert value == pytest.approx(slow(list(range(7))))
    without = np.array([slow([row for row in range(7) if row != out]) for out in range(7)])
    assert pull == pytest.approx(6 * (without.mean() - without))
    jackknife = np.sqrt(6 / 7 * ((without - without.mean()) ** 2).sum())
    assert clustered_error(value + pull, list("abcdefg")) == pytest.approx(jackknife)


def test_unrelated_embeddings_of_few_slides_have_no_debiased_linear_cka() -> None:
    rng = np.random.default_rng(6)
    pairs = [rng.normal(size=(2, 54, 768)) for _ in range(20)]
    assert min(linear_cka(a, b)[0] for a, b in pairs) > 0.9
    assert np.mean([debiased_linear_cka(a, b)[0] for a, b in pairs]) == pytest.approx(0, abs=0.02)
    a = pairs[0][0]
    assert debiased_linear_cka(a, 3 - 2 * a[:, ::-1])[0] == pytest.approx(1)


def test_what_debiased_linear_cka_cannot_say_is_none_with_a_reason() -> None:
    given = evidence(Norm, [[2, 0], [0, 1]], [[0, 3], [0, 1]], [[4, 0], [0, 3]])
    few = next(m for m in Fidelity().run(given).metrics if m.name == "linear_cka_debiased")
    assert few.value is None and few.note == "undefined: fewer than 4 slides"
    a = np.random.default_rng(0).normal(size=(6, 3))
    assert np.isnan(debiased_linear_cka(a, np.eye(6))[0])
    value, pull = debiased_linear_cka(a[:4], a[:4])
    assert value == pytest.approx(1) and np.isnan(pull).all()


def test_neighbour_overlap_by_hand() -> None:
    a, b = (np.array(x, float)[:, None] for x in ([0, 1, 3, 6], [0, 1, 3, 1.5]))
    assert neighbour_overlap(a, b, 1).tolist() == [1, 0, 0, 0]  # 1 0 1 2 and 1 3 3 1
    assert neighbour_overlap(a, b, 3).tolist() == [1, 1, 1, 1]


def test_a_cosine_with_nothing_is_zero() -> None:
    assert cosines(np.array([[0.0, 0]]), np.array([[1.0, 0]])).tolist() == [0]


def test_nothing_pruned_is_nothing_lost() -> None:
    slides = np.random.default_rng(5).normal(size=(12, 9, 4)).tolist()
    given = evidence(Nothing, *slides, rate=0.0)
    fidelity = values(Fidelity().run(given))
    assert fidelity["cosine"] == fidelity["linear_cka"] == pytest.approx(1)
    assert fidelity["linear_cka_debiased"] == pytest.approx(1)
    assert fidelity["neighbour_overlap"] == 1
    assert fidelity["effective_rank"] == pytest.approx(fidelity["effective_rank_unpruned"])
    assert values(Reconstruction().run(given)) == {"reconstruction_error": 0}
    assert values(Faithfulness().run(given)) == {"sufficiency": 0, "comprehensiveness": 0}


def test_unpruned_means_without_a_reducer_that_reduces_at_every_rate() -> None:
    given = evidence(FirstOnly, [[1, 0], [0, 1]], [[0, 3], [0, 1]], rate=0.0)
    placed = dict(given.encoder.reducers)
    assert values(Fidelity().run(given))["cosine"] == pytest.approx((ROOT_HALF + 1) / 2)
    assert dict(given.encoder.reducers) == placed
    found = Faithfulness().run(given)  # its one token stands at no patch
    assert values(found) == {"sufficiency": None, "comprehensiveness": None}
    assert "stand at no patch" in found.metrics[0].note


def test_unpruned_is_the_plan_at_rate_0_for_an_encoder_of_blocks() -> None:
    given = evidence(Norm, np.random.default_rng(3).normal(size=(40, 6)).tolist())
    torch.manual_seed(0)
    given.encoder = Slim(6, width=16, depth=3, heads=2, mlp=32).eval()
    given.encoder.place_reducers(Norm, given.plan.schedule)
    slide = given.slide("s0")
    with torch.inference_mode():
        at_zero = given.encoder([slide], Plan(given.plan.schedule, 0.0)).embedding[0]
        pruned = given.encoder([slide], given.plan).embedding[0]
    assert Unpruned(given)(slide) == pytest.approx(at_zero.numpy(), abs=1e-6)
    assert np.abs(Unpruned(given)(slide) - pruned.numpy()).max() > 1e-3
    part = np.array([1, 5, 30])
    with torch.inference_mode():
        alone = given.encoder(
            [type(slide)("s0", type(slide.tokens).of(slide.tokens.x[part], slide.tokens.coords[part]))],
            Plan(given.plan.schedule, 0.0),
        ).embedding[0]
    assert Unpruned(given)(slide, part) == pytest.approx(alone.numpy(), abs=1e-6)


def test_one_test_slide_has_no_fidelity() -> None:
    one = evidence(Norm, [[1, 0], [0, 1]])
    for ask in (lambda: Fidelity().check(one.cohort), lambda: Fidelity().run(one)):
        with pytest.raises(CohortError, match="1 test slides; fidelity compares at least two"):
            ask()


X = np.array([[0.0], [1], [4], [5]])  # mean 2.5, squares 17
LINE = np.array([[0, 0], [1, 0], [2, 0], [3, 0]])


@pytest.mark.parametrize(
    ("token", "squares"),
    [
        ([0, 0, 1, 1], 4 * 0.25),
        ([0, 0, 0, 0], 17),
        ([0, -1, -1, 1], 1 + 1),  # 1 goes to 0, 4 goes to 5
        ([0, -1, 1, -1], 1 + 1),  # patch 1 lies between 0 and 2: the first of equals
        ([-1, -1, -1, 0], 25 + 16 + 1),
        ([0, 0, -1, 1], 0.25 + 0.25 + 3.5**2),  # 4 goes to the mean of 0 and 1
        ([-1, 0, 0, 1], 2.5**2 + 2 * 1.5**2),  # the dropped one goes to the mean of the token nearest to it
        ([2, 0, 1, 3], 0),
    ],
)
def test_reconstruction_by_hand(token: list[int], squares: float) -> None:
    assert reconstruction_error(X, LINE, np.array(token)) == pytest.approx(squares / 17)


def test_equal_patches_have_nothing_to_lose() -> None:
    assert reconstruction_error(np.ones((3, 2)), LINE[:3], np.array([0, -1, -1])) == 0


def test_the_nearest_kept_patch_is_the_first_of_equals() -> None:
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(np.arange(40), np.arange(30)), axis=-1).reshape(-1, 2)
    kept = grid[np.sort(rng.choice(len(grid), 90, replace=False))]
    squares = ((grid[:, None] - kept[None]) ** 2).sum(axis=2)
    assert (nearest(grid, kept) == squares.argmin(axis=1)).all()
    assert (nearest(grid, kept[:1]) == 0).all()


def test_the_reconstruction_of_a_merger_and_of_a_pruner() -> None:
    slides = [X.tolist(), [[0], [2], [0], [2]]]
    merged = Reconstruction().run(evidence(Pairs, *slides))
    assert values(merged)["reconstruction_error"] == pytest.approx((1 / 17 + 1) / 2)
    assert merged.facts == {"dropped_share": 0}
    # The longest half: 4 and 5 stay, 0 and 1 go to 4; both 2 stay, each 0 goes to the first 2 that is near.
    pruned = Reconstruction().run(evidence(Norm, *slides))
    assert values(pruned)["reconstruction_error"] == pytest.approx(((16 + 9) / 17 + 8 / 4) / 2)
    assert pruned.facts == {"dropped_share": 0.5}


class Shortest(Pruner):
    def score(self, tokens, context):
        return -tokens.x.norm(dim=1)


def test_faithfulness_by_hand() -> None:
    """(2, 0) is kept, two of (0, 1) are not; the mean points along (1, 1)."""
    slide = [[2, 0], [0, 1], [0, 1]]
    result = Faithfulness(draws=600).run(evidence(Norm, slide, slide, rate=0.6))
    found = values(result)
    far, near = 1 - ROOT_HALF, 1 - 3 / 10**0.5  # of one patch alone; of (2, 0) with one (0, 1)
    assert found["sufficiency"] == pytest.approx(0, abs=1e-6)  # any patch alone is as far from (1, 1)
    expected = far - (far / 3 + near * 2 / 3)  # a third of the random sets is the kept one
    assert found["comprehensiveness"] == pytest.approx(expected, abs=0.01) and expected > 0.1
    row = result.predictions.iloc[0]
    assert row["kept"] == pytest.approx(far, abs=1e-6) and row["without_kept"] == pytest.approx(far, abs=1e-6)
    assert near - 1e-6 < row["without_random"] < far


def test_keeping_the_worst_is_not_comprehensive() -> None:
    slide = [[2, 0], [0, 1], [0, 1]]
    found = values(Faithfulness(draws=50).run(evidence(Shortest, slide, rate=0.6)))
    assert found["comprehensiveness"] < -0.03


def test_a_merger_keeps_the_patches_that_its_tokens_stand_at() -> None:
    result = Faithfulness().run(evidence(Pairs, [[2, 0], [0, 1], [0, 1], [0, 1]]))
    assert result.predictions["patches"].tolist() == [2]


def test_the_sample_is_the_same_for_every_row_and_says_its_size() -> None:
    ids = [f"s{number}" for number in range(50)]
    assert sampled(ids, 8) == sampled(ids, 8) == sorted(set(sampled(ids, 8)))
    assert sampled(ids, 8) != sampled(ids[::-1], 8) and sampled(ids, 99) == list(range(50))
    slides = np.random.default_rng(0).normal(size=(6, 4, 2)).tolist()
    one, other = (Faithfulness(slides=4, draws=2).run(evidence(r, *slides)) for r in (Norm, Shortest))
    assert one.metrics[0].n == 4 and one.facts == {"slides": 4, "of": 6, "draws": 2}
    assert one.predictions["random"].tolist() == other.predictions["random"].tolist()
    assert one.predictions["kept"].tolist() != other.predictions["kept"].tolist()
