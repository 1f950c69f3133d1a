"""Training promises: the loss is CLIP's, the same cell gives the same numbers, gradients stop where they should."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import slimbench.runs.cell as cells
from slimbench.cohorts.cohort import InMemoryCohort, Patches, Slide
from slimbench.cohorts.digits import digits
from slimbench.encoder import Encoded, Plan, SlideInput
from slimbench.errors import CohortError, SlimbenchError, UsageError
from slimbench.registry import encoders, reducers
from slimbench.runs.record import Cell
from slimbench.runs.store import Store
from slimbench.schedule import Geometric
from slimbench.seeds import seed_of
from slimbench.tokens import Tokens
from slimbench.trace import STAYED
from slimbench.training.contrastive import contrastive_loss, text_ids
from slimbench.training.fit import fit, learning_rate_factor, parameter_groups
from slimbench.training.model import Aligned
from slimbench.training.recipe import RECIPES, Recipe, recipe
from slimbench.training.slides import SlideLoader, evaluation_batches, thinned, training_batches

SMALL = dataclasses.replace(RECIPES["tiny"], epochs=2, batch=8)


@pytest.fixture(scope="module")
def cohort() -> InMemoryCohort:
    """The first 48 training and 24 test slides of digits."""
    whole = digits()
    slides = (*whole.split("train")[:48], *whole.split("test")[:24])
    return dataclasses.replace(whole, slides=slides, fingerprint="a part of digits")


def model(reducer: str = "cropr", encoder_name: str = "slim-tiny", of: Recipe = SMALL) -> Aligned:
    torch.manual_seed(0)
    encoder = encoders.build(encoder_name, input_dim=48)
    encoder.place_reducers(lambda width: reducers.build(reducer, dim=width), Geometric())
    return Aligned(encoder, 64, of)


def trained(
    cohort: InMemoryCohort, reducer: str = "cropr", of: Recipe = SMALL, encoder: str = "slim-tiny"
) -> tuple[Aligned, list[float]]:
    made = model(reducer, encoder, of)
    slides = [slide for slide in cohort.split("train") if slide.report]
    draw = torch.Generator().manual_seed(1)
    texts = {s.report: torch.randn(64, generator=draw) for s in slides if s.report}
    history = fit(
        made,
        slides,
        texts,
        SlideLoader(cohort, torch.device("cpu")),
        of,
        Plan(Geometric(), 0.9, seed=3),
        "fp32",
        lambda *_: None,
    )
    return made, list(history.losses)


# --- the loss -------------------------------------------------------------------------------------------


def slow_contrastive(slides: np.ndarray, texts: np.ndarray, scale: float, ids: list[int]) -> float:
    """CLIP's loss pair by pair in float64; equal texts share the target evenly."""
    s = slides / np.linalg.norm(slides, axis=1, keepdims=True)
    t = texts / np.linalg.norm(texts, axis=1, keepdims=True)
    total, b = 0.0, len(ids)
    for logits in (scale * s @ t.T, scale * t @ s.T):
        for i in range(b):
            partition = math.log(sum(math.exp(x) for x in logits[i]))
            same = [j for j in range(b) if ids[j] == ids[i]]
            total += sum(partition - logits[i, j] for j in same) / len(same)
    return total / (2 * b)


@given(st.lists(st.integers(0, 3), min_size=2, max_size=7), st.floats(0.1, 20))
def test_the_loss_is_clips_and_equal_reports_share_the_target(ids: list[int], scale: float) -> None:
    draw = np.random.default_rng(len(ids))
    slides, texts = draw.normal(size=(2, len(ids), 5))
    found = contrastive_loss(
        torch.tensor(slides), torch.tensor(texts), torch.tensor(scale), torch.tensor(ids)
    )
    assert float(found) == pytest.approx(slow_contrastive(slides, texts, scale, ids), rel=1e-5)


def test_equal_reports_have_equal_ids() -> None:
    assert text_ids(["a", "b", "a", "c", "b"]).tolist() == [0, 1, 0, 3, 1]


@torch.no_grad()
def test_every_summary_and_every_loss_of_a_reducer_is_added() -> None:
    made = model()
    embedding, text, ids = torch.randn(4, 48), torch.randn(4, 64), torch.arange(4)
    alone = made.loss(Encoded(embedding, ((),) * 4), text, ids)[0]
    summaries = {block: torch.randn(4, 48) for block in (1, 2)}
    total, main = made.loss(Encoded(embedding, ((),) * 4, summaries, torch.tensor(0.5)), text, ids)
    target = made.text_head(text)
    extra = sum(
        contrastive_loss(
            made.summary_heads[str(b)](z), target, made.summary_log_scales[str(b)].exp().clamp(max=50), ids
        )
        for b, z in summaries.items()
    )
    assert float(main) == float(alone)
    assert float(total) == pytest.approx(float(alone + extra + 0.5), rel=1e-6)


# --- gradients ------------------------------------------------------------------------------------------


def gradients(reducer: str, auxiliary_only: bool) -> dict[str, float]:
    """Largest gradient of each parameter after one backward pass of the whole, or of all but the main, loss."""
    made = model(reducer)
    made.train()
    draw = torch.Generator().manual_seed(2)
    slides = [SlideInput(str(i), Tokens.of(torch.randn(40 + i, 48, generator=draw))) for i in range(4)]
    encoded = made.encoder(slides, Plan(Geometric(), 0.5, seed=1))
    total, main = made.loss(encoded, torch.randn(4, 64, generator=draw), torch.arange(4))
    (total - main if auxiliary_only else total).backward()
    return {
        name: 0.0 if parameter.grad is None else float(parameter.grad.abs().max())
        for name, parameter in made.named_parameters()
    }


def test_croprs_losses_do_not_reach_the_encoder_unless_asked_to() -> None:
    stopped, open_ = gradients("cropr", True), gradients("cropr:detach=false", True)
    of_encoder = [name for name in stopped if name.startswith("encoder.") and ".reducers." not in name]
    assert max(stopped[name] for name in of_encoder) < 1e-6
    assert max(open_[name] for name in of_encoder) > 1e-3


def test_every_parameter_learns() -> None:
    silent = [name for name, largest in gradients("cropr", False).items() if largest == 0]
    assert silent == []


# --- recipes and schedules of the learning rate ---------------------------------------------------------


def test_the_papers_recipe() -> None:
    paper = recipe("paper")
    assert (paper.epochs, paper.warmup, paper.lr, paper.weight_decay, paper.batch) == (20, 2, 5e-4, 0.1, 16)
    assert paper.checkpointing


def test_a_recipe_is_changed_behind_a_colon_and_mistakes_are_named() -> None:
    assert recipe("tiny:epochs=3,lr=1e-3") == dataclasses.replace(RECIPES["tiny"], epochs=3, lr=1e-3)
    with pytest.raises(UsageError, match="no recipe is called 'papr'"):
        recipe("papr")
    with pytest.raises(UsageError, match="takes no argument 'epoch'"):
        recipe("paper:epoch=3")


def test_the_rate_warms_up_and_falls_to_zero() -> None:
    factors = [learning_rate_factor(step, 100, 10) for step in range(101)]
    assert factors[:10] == pytest.approx([0.1 * (n + 1) for n in range(10)])
    assert factors[10] == 1 and factors[55] == pytest.approx(0.5) and factors[100] == pytest.approx(0)


def test_reducers_learn_faster_and_vectors_do_not_decay() -> None:
    made = model()
    groups = parameter_groups(made, SMALL)
    found = {id(p): group for group in groups for p in group["params"]}
    assert len(found) == len(list(made.parameters()))
    query = found[id(made.encoder.reducers["1"].query)]
    mlp = found[id(made.encoder.reducers["1"].mlp[0].weight)]
    head = found[id(made.summary_heads["1"][1].weight)]
    block = found[id(made.encoder.blocks[0].qkv.weight)]
    bias = found[id(made.encoder.blocks[0].qkv.bias)]
    assert query["lr"] == pytest.approx(5 * SMALL.lr) and query["weight_decay"] == 0
    assert mlp["lr"] == head["lr"] == pytest.approx(5 * SMALL.lr) and mlp["weight_decay"] == 0.05
    assert block["lr"] == bias["lr"] == SMALL.lr
    assert block["weight_decay"] == 0.05 and bias["weight_decay"] == 0


# --- batches --------------------------------------------------------------------------------------------


def listed(lengths: list[int]) -> list[Slide]:
    return [Slide(f"s{i}", f"p{i}", "train", n) for i, n in enumerate(lengths)]


@given(st.lists(st.integers(1, 300), min_size=2, max_size=60), st.integers(1, 9), st.integers(1, 4))
def test_an_epoch_visits_no_slide_twice_and_fills_its_batches(
    lengths: list[int], size: int, bucket: int
) -> None:
    slides = listed(lengths)
    batches = training_batches(slides, size, bucket, seed=1, epoch=0)
    seen = [slide.id for batch in batches for slide in batch]
    assert len(seen) == len(set(seen))
    if len(slides) >= size:
        assert all(len(batch) == size for batch in batches)
    else:
        assert sorted(seen) == sorted(slide.id for slide in slides)


def test_epochs_differ_and_are_replayed() -> None:
    slides = listed(list(range(1, 50)))
    first, again = (training_batches(slides, 8, 2, seed=1, epoch=0) for _ in range(2))
    assert first == again
    assert first != training_batches(slides, 8, 2, seed=1, epoch=1)
    assert first != training_batches(slides, 8, 2, seed=2, epoch=0)


@given(st.lists(st.integers(1, 300), max_size=60), st.integers(1, 700))
def test_evaluation_visits_every_slide_within_its_bound(lengths: list[int], tokens: int) -> None:
    batches = list(evaluation_batches(listed(lengths), tokens))
    assert sorted(s.id for b in batches for s in b) == sorted(s.id for s in listed(lengths))
    assert all(len(b) == 1 or sum(s.patches for s in b) <= tokens for b in batches)


def test_thinning_keeps_raster_order_coordinates_and_truth() -> None:
    coords = torch.stack((torch.arange(20.0), torch.arange(20.0) % 3), 1)
    slide = SlideInput("a", Tokens.of(torch.arange(20.0).unsqueeze(1), coords), torch.arange(20) == 7)
    thin = thinned(slide, 0.25, seed=4)
    rows = thin.tokens.x.squeeze(1).long()
    assert len(rows) == 15 and rows.tolist() == sorted(set(rows.tolist()))
    assert torch.equal(thin.tokens.coords, coords[rows])
    assert thin.truth is not None and torch.equal(thin.truth, rows == 7)
    assert thinned(slide, 0.0, seed=4) is slide


# --- the loop -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reducer", ["cropr", "random", "tome"])
def test_training_twice_gives_equal_weights_to_the_last_digit(cohort: InMemoryCohort, reducer: str) -> None:
    one, losses = trained(cohort, reducer)
    torch.rand(7)  # the global generator's state is nobody's business
    two, again = trained(cohort, reducer)
    assert losses == again
    assert all(
        torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True)
    )


def test_recomputing_activations_changes_nothing(cohort: InMemoryCohort) -> None:
    kept, _ = trained(cohort, "random")
    recomputed, _ = trained(cohort, "random", dataclasses.replace(SMALL, checkpointing=True))
    for a, b in zip(kept.state_dict().values(), recomputed.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_training_learns(cohort: InMemoryCohort) -> None:
    _, losses = trained(cohort, of=dataclasses.replace(SMALL, epochs=8))
    assert losses[-1] < 0.8 * losses[0]


def test_one_report_is_not_enough() -> None:
    slide = Slide("a", "p", "train", 3, report="alone")
    alone = InMemoryCohort(
        "one", (slide,), (), 48, "report", "x", {"a": Patches(np.zeros((3, 48), np.float32))}
    )
    with pytest.raises(CohortError, match="1 training slides have a report"):
        trained(alone)


def test_a_loss_that_is_not_finite_ends_the_cell_with_advice(cohort: InMemoryCohort) -> None:
    with pytest.raises(SlimbenchError, match="lower the learning rate"):
        trained(cohort, "none", dataclasses.replace(SMALL, lr=1e30, clip=1e30), "mean-pool")


# --- a whole cell ---------------------------------------------------------------------------------------


def cell(**changes: object) -> Cell:
    asked = {
        "encoder": "slim-tiny",
        "reducer": "cropr",
        "rate": 0.9,
        "trained_at": 0.9,
        "seed": 0,
        "cohort": "digits",
        "text": "tfidf",
        "recipe": "tiny:epochs=2",
        "tasks": ("zero-shot", "retrieval", "saliency"),
    }
    return Cell.model_validate(asked | changes)


@pytest.fixture
def run(cohort: InMemoryCohort, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cells, "open_cohort", lambda name: cohort)
    return lambda asked, out: cells.run_cell(asked, out, lambda progress: None)


def test_the_same_cell_twice_gives_the_same_numbers(run, tmp_path: Path) -> None:
    one, two = run(cell(), tmp_path / "a"), run(cell(), tmp_path / "b")
    assert one.key == two.key
    assert {t: o.metrics for t, o in one.tasks.items()} == {t: o.metrics for t, o in two.tasks.items()}
    for task, outcome in one.tasks.items():
        assert (
            outcome.predictions
            and (tmp_path / "a" / outcome.predictions).read_bytes()
            == (tmp_path / "b" / outcome.predictions).read_bytes()
        ), task


def test_a_cell_leaves_the_kept_set_of_every_test_slide(run, cohort: InMemoryCohort, tmp_path: Path) -> None:
    pruned = run(cell(), tmp_path)
    found = Store(tmp_path).kept_sets(pruned.key)
    assert list(found) == [slide.id for slide in cohort.split("test")]
    shares = [float((left == STAYED).mean()) for left in found.values()]
    assert sum(shares) / len(shares) == pytest.approx(pruned.kept.share)
    assert {int(block) for left in found.values() for block in left} == {1, 2, 3, 4, 5, STAYED}


def test_another_rate_at_evaluation_reuses_the_trained_weights(run, tmp_path: Path) -> None:
    trained_here, at_half = run(cell(), tmp_path), run(cell(rate=0.5), tmp_path)
    assert not trained_here.training.reused and at_half.training.reused
    assert trained_here.kept.share < 0.11 and at_half.kept.share == pytest.approx(0.49, abs=0.02)


def test_mean_pool_needs_no_blocks_and_random_pool_is_a_reducer_before_it(run, tmp_path: Path) -> None:
    plain = run(cell(encoder="mean-pool", reducer="none", rate=0, trained_at=0), tmp_path)
    pooled = run(cell(encoder="mean-pool", reducer="random"), tmp_path)
    assert plain.kept.share == 1 and pooled.kept.share == pytest.approx(0.1, abs=0.01)
    assert plain.tasks["retrieval"].skipped is None


def test_rows_that_differ_in_the_reducer_start_from_the_same_encoder(cohort: InMemoryCohort) -> None:
    device = torch.device("cpu")
    one = cells.build(cell(), cohort, device)[0].state_dict()
    two = cells.build(cell(reducer="random", seed=0), cohort, device)[0].state_dict()
    shared = [name for name in one if not name.startswith("reducers.")]
    assert shared and all(torch.equal(one[name], two[name]) for name in shared)


def test_a_cohort_without_reports_says_what_to_do(cohort: InMemoryCohort) -> None:
    silent = dataclasses.replace(
        cohort, slides=tuple(dataclasses.replace(slide, report=None) for slide in cohort.slides)
    )
    with pytest.raises(UsageError, match="use --encoder mean-pool"):
        cells.build(cell(), silent, torch.device("cpu"))
    encoder, aligned, _ = cells.build(cell(encoder="mean-pool", reducer="none"), silent, torch.device("cpu"))
    assert aligned is None and encoder.dim == 48


def test_seeds_depend_on_every_part() -> None:
    assert len({seed_of("a", 1), seed_of("a", 2), seed_of("b", 1), seed_of("a", "1"), seed_of("a1")}) == 5
