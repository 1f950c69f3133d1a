"""Every shipped reducer against its paper's definition, written out slowly in float64."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import elu, gelu, normalize

import slimbench.reducers as room
from slimbench.block_encoder import BlockEncoder
from slimbench.conformance.cases import MadeAttention, made_context, made_slide
from slimbench.encoder import Plan, SlideInput
from slimbench.errors import UsageError
from slimbench.measure.process import peak_resident_bytes, resident_bytes, start_peak
from slimbench.reducer import Context, Reducer
from slimbench.reducers.ats import inverse_transform_sample
from slimbench.reducers.dpc_knn import density_peaks
from slimbench.reducers.grid_pool import finest_cells, topped_up
from slimbench.reducers.tome import bipartite_match
from slimbench.registry import encoders, reducers
from slimbench.schedule import Geometric, Once, Schedule
from slimbench.tokens import Tokens

DIM = 12


def slide(n: int, seed: int = 0) -> Tokens:
    return made_slide(n, DIM, seed)


def context(tokens: Tokens, layer: int = 1, *, training: bool = False) -> Context:
    return made_context(tokens, layer=layer, training=training)


def built(spec: str, dim: int = DIM) -> Reducer:
    torch.manual_seed(3)
    reducer = reducers.build(spec, dim=dim)
    assert isinstance(reducer, Reducer)
    return reducer


def dense_cls_row(tokens: Tokens, around: Context) -> np.ndarray:
    """[H, N] in float64, head by head."""
    made = MadeAttention(tokens.x.shape[1])
    q, k = (made.weight[which].double() for which in (0, 1))
    queries, keys = q @ around.cls.double(), tokens.x.double() @ k.T
    rows = []
    for head in range(made.heads):
        part = slice(head * DIM // made.heads, (head + 1) * DIM // made.heads)
        logits = keys[:, part] @ queries[part] / math.sqrt(DIM / made.heads) + tokens.size.double().log()
        rows.append((logits - logits.max()).exp() / (logits - logits.max()).exp().sum())
    return torch.stack(rows).numpy()


def same_grouping(one: Tensor, two: Tensor) -> bool:
    return torch.equal(one.unsqueeze(0) == one.unsqueeze(1), two.unsqueeze(0) == two.unsqueeze(1))


def test_every_file_of_the_room_is_in_its_dictionary() -> None:
    files = {path.stem for path in Path(room.__file__).parent.glob("*.py")} - {"__init__"}
    assert files == {target.split(":")[0].rpartition(".")[2] for target in room.BUILT_INS.values()}


def test_a_reducer_is_under_a_hundred_lines() -> None:
    lengths = {
        path.name: len(path.read_text().splitlines()) for path in Path(room.__file__).parent.glob("*.py")
    }
    assert {name: length for name, length in lengths.items() if length >= 100} == {}


# --- controls ------------------------------------------------------------------------------------


def test_none_keeps_all_whatever_is_asked() -> None:
    tokens = slide(9)
    assert built("none")(tokens, 2, context(tokens)).tokens is tokens


def test_random_draws_every_subset_equally_often() -> None:
    tokens, reducer, seen = slide(4), built("random"), torch.zeros(4, 4)
    for seed in range(1200):
        kept = reducer(tokens, 2, Context(tokens, tokens.x[0], 1, seed)).tokens.origin
        seen[kept[0], kept[1]] += 1
    pairs = seen[seen > 0]
    assert len(pairs) == 6  # 1200 draws of 6 pairs: 200 each, standard deviation 13
    assert (pairs - 200).abs().max() < 60


@pytest.mark.parametrize(("n", "keep"), [(2, 1), (10, 3), (10, 9), (101, 100), (17182, 3436)])
def test_stride_keeps_the_rows_nearest_to_equal_distances(n: int, keep: int) -> None:
    tokens = Tokens.of(torch.zeros(n, 1))
    kept = built("stride", 1)(tokens, keep, Context(tokens, torch.zeros(1), 1, 0)).tokens.origin
    assert len(kept.unique()) == keep
    assert np.abs(kept.numpy() - np.linspace(0, n - 1, keep)).max() <= 0.5


def test_norm_keeps_the_longest_tokens() -> None:
    tokens = slide(30)
    kept = built("norm")(tokens, 7, context(tokens)).tokens.origin
    assert kept.tolist() == sorted(tokens.x.double().norm(dim=1).argsort(descending=True)[:7].tolist())


def test_oracle_keeps_lesions_first_and_others_at_random() -> None:
    tokens = slide(200)
    around = context(tokens)
    assert around.truth is not None
    lesions = int(around.truth[:200].sum())
    kept = built("oracle")(tokens, lesions + 40, around).tokens.origin
    assert int(around.truth[kept].sum()) == lesions
    others = kept[~around.truth[kept]]
    assert 60 < others.float().mean() < 140  # not the top edge of the slide
    kept = built("oracle")(tokens, lesions - 5, around).tokens.origin
    assert bool(around.truth[kept].all())


def test_oracle_says_when_nobody_knows_the_lesions() -> None:
    tokens = slide(5)
    with pytest.raises(UsageError, match="knows none"):
        built("oracle")(tokens, 2, Context(tokens, tokens.x[0], 1, 0))


def test_reverse_keeps_what_would_go_first() -> None:
    tokens = slide(30)
    best = built("norm")(tokens, 20, context(tokens)).tokens.origin
    worst = built("reverse(norm)")(tokens, 10, context(tokens)).tokens.origin
    assert sorted([*best.tolist(), *worst.tolist()]) == list(range(30))


def test_reverse_trains_the_inner_reducer() -> None:
    tokens, inside, around = slide(30), built("reverse(cropr:detach=false)"), built("cropr:detach=false")
    summaries = [r(tokens, 5, context(tokens, training=True)).summary for r in (inside, around)]
    assert torch.equal(*summaries)
    assert inside.detach is False
    assert inside.lr_scale == around.lr_scale == 5


def test_reverse_refuses_a_reducer_without_scores() -> None:
    with pytest.raises(UsageError, match="ToMe has none"):
        built("reverse(tome)")


def test_grid_pool_is_the_mean_over_square_cells() -> None:
    y, x = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    coords = torch.stack((x.flatten(), y.flatten()), dim=1) + 100
    tokens = Tokens.of(torch.randn(64, DIM, generator=torch.Generator().manual_seed(0)), coords)
    reduction = built("grid-pool")(tokens, 16, context(tokens))
    for line in range(4):
        for column in range(4):
            cell = (x.flatten() // 2 == column) & (y.flatten() // 2 == line)
            row = reduction.assign[cell].unique()
            assert len(row) == 1
            assert torch.allclose(reduction.tokens.x[row[0]], tokens.x[cell].mean(0), atol=1e-6)
            assert reduction.tokens.size[row[0]] == 4


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_grid_pool_meets_any_count_on_any_coordinates(data: st.DataObject) -> None:
    n = data.draw(st.integers(2, 60))
    keep = data.draw(st.integers(1, n - 1))
    scale = data.draw(st.sampled_from([0.0, 0.3, 1.0, 1e4]))
    draw = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    coords = (torch.randn(n, 2, generator=draw) * scale).round(decimals=2)
    cells = finest_cells(coords, keep)
    assert int(cells.max()) + 1 <= keep
    groups = topped_up(cells, keep)
    assert groups.unique().tolist() == list(range(keep))
    for group in range(keep):
        assert len(cells[groups == group].unique()) == 1  # topping up only divides cells


# --- cropr ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("keys", ["linear", "identity"])
def test_cropr_keeps_the_largest_dot_products_in_raster_order(keys: str) -> None:
    tokens, reducer = slide(30), built(f"cropr:keys={keys}")
    projected = tokens.x.double() @ reducer.key.weight.double().T if keys == "linear" else tokens.x.double()
    scores = projected @ reducer.query.double()
    best = scores.argsort(descending=True)[:7].tolist()
    assert reducer(tokens, 7, context(tokens)).tokens.origin.tolist() == sorted(best)
    reducer.order = "score"
    assert reducer(tokens, 7, context(tokens)).tokens.origin.tolist() == best


@pytest.mark.parametrize("aggregate_cls", [False, True])
def test_cropr_summary_is_softmax_pooling_and_a_residual_mlp(aggregate_cls: bool) -> None:
    tokens, reducer = slide(30), built(f"cropr:aggregate_cls={aggregate_cls}")
    around = context(tokens, training=True)
    summary = reducer(tokens, 7, around).summary.double()
    x = torch.cat((around.cls.unsqueeze(0), tokens.x)) if aggregate_cls else tokens.x
    x, q, key = x.double(), reducer.query.double(), reducer.key.weight.double()
    weight = (x @ key.T @ q / DIM**0.5).exp()
    z = (weight / weight.sum()) @ x
    normed = (z - z.mean()) / (z.var(unbiased=False) + 1e-6).sqrt()
    up, _, down = reducer.mlp.double()
    assert torch.allclose(summary, z + down(gelu(up(normed))), atol=1e-6)


def test_cropr_learns_and_lets_the_encoder_be_unless_told_otherwise() -> None:
    for detach in (True, False):
        tokens, reducer = slide(30), built(f"cropr:detach={detach}")
        tokens.x.requires_grad_()
        reducer(tokens, 7, context(tokens, training=True)).summary.sum().backward()
        assert all(parameter.grad is not None for parameter in reducer.parameters())
        assert (tokens.x.grad is None) == detach


# --- tome, tome-local ----------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 3, 10, 41])
@pytest.mark.parametrize("parity", [0, 1])
@pytest.mark.parametrize("strip", [1, 4, 1024])
def test_strips_find_the_pairs_of_the_full_similarity_matrix(n: int, parity: int, strip: int) -> None:
    metric = slide(n, seed=n).x
    drop = n // 2 - (n > 5)
    unit = normalize(metric.double(), dim=1)
    targets = list(range(1 - parity, n, 2))
    best = []
    for row in range(parity, n, 2):
        similarity, target = max((float(unit[row] @ unit[t]), -t) for t in targets)
        best.append((similarity, row, -target))
    home = torch.arange(n)
    for _, row, target in sorted(best, reverse=True)[:drop]:
        home[row] = target
    assert same_grouping(bipartite_match(metric, drop, parity, strip=strip), home)


def test_matching_a_long_slide_holds_one_strip_of_similarities() -> None:
    metric = slide(30_000).x  # 15,000 x 15,000 similarities are 858 MiB
    before = resident_bytes()
    start_peak()
    if peak_resident_bytes() > before + 2**26:
        pytest.skip("this system does not let the peak of the resident set start anew")
    bipartite_match(metric, 10_000, 0)
    assert peak_resident_bytes() - before < 2**26


def test_tome_merges_the_size_weighted_mean() -> None:
    class Itself(MadeAttention):
        def mean_keys(self, x: Tensor) -> Tensor:
            return x

    x = torch.tensor([[1.0, 0.0], [0.9, 0.1], [-1.0, 1.0]])
    tokens = Tokens(x, torch.zeros(3, 2), torch.tensor([3.0, 1.0, 1.0]), torch.arange(3))
    around = Context(tokens, x[0], layer=0, seed=0, ahead=Itself(2, heads=1))
    merged = built("tome", 2)(tokens, 2, around).tokens
    assert torch.allclose(merged.x, torch.tensor([[0.975, 0.025], [-1.0, 1.0]]))
    assert merged.size.tolist() == [4.0, 1.0]
    assert merged.origin.tolist() == [0, 2]


def test_tome_alternates_its_sets_between_blocks() -> None:
    tokens, reducer = slide(40), built("tome")
    for layer, parity in ((1, 1), (2, 0)):
        group = reducer(tokens, 30, context(tokens, layer)).assign
        joined = {row for row in range(40) if (group == group[row]).sum() > 1}
        assert (
            len({row for row in joined if row % 2 == parity}) == 10
        )  # each row of the first set at most once


def test_tome_takes_more_than_half_in_rounds_and_loses_nothing() -> None:
    tokens = slide(40)
    reduction = built("tome")(tokens, 3, context(tokens))
    assert len(reduction.tokens) == 3
    counts = torch.zeros(3).index_add(0, reduction.assign, torch.ones(40))
    assert torch.equal(counts, reduction.tokens.size)


@pytest.mark.parametrize("window", [2, 8, 40])
def test_local_pairs_lie_within_their_window(window: int) -> None:
    group = bipartite_match(slide(41).x, 20, 0, window=window)
    for row in range(41):
        fellows = (group == group[row]).nonzero().squeeze(1)
        start = min(row // window, 39 // window) * window  # a single last row joins the window before it
        assert all(start <= fellow < start + window + 1 for fellow in fellows.tolist())


def test_tome_local_is_tome_when_the_window_is_the_slide() -> None:
    tokens = slide(41)
    local, whole = (built(spec)(tokens, 25, context(tokens)) for spec in ("tome-local:window=42", "tome"))
    assert torch.equal(local.assign, whole.assign)


# --- attention -----------------------------------------------------------------------------------


def test_attn_topk_ranks_by_the_dense_cls_row() -> None:
    tokens = made_slide(30, DIM, merged=True)
    around = context(tokens)
    row = dense_cls_row(tokens, around).mean(0)
    reduction = built("attn-topk")(tokens, 7, around)
    assert np.allclose(reduction.scores.numpy(), row, atol=1e-6)
    assert reduction.tokens.origin.tolist() == tokens.origin[np.sort(row.argsort()[::-1][:7]).copy()].tolist()


def test_attn_topk_by_the_mean_query_is_pacts_score() -> None:
    tokens = slide(30)
    around = context(tokens)
    made = MadeAttention(DIM)
    query = made.queries(tokens.x.double().float()).double().mean(0)
    expected = torch.zeros(30, dtype=torch.float64)
    for head in range(made.heads):
        logits = made.keys(tokens.x).double()[:, head] @ query[head] / math.sqrt(DIM / made.heads)
        expected += logits.softmax(0) / made.heads
    expected *= tokens.x.double().norm(dim=1)
    scores = built("attn-topk:query=mean")(tokens, 7, around).scores
    assert torch.allclose(scores.double(), expected, atol=1e-6)


def test_evit_fuses_the_rest_by_undivided_attention() -> None:
    tokens = slide(30)
    around = context(tokens)
    row = torch.from_numpy(dense_cls_row(tokens, around).mean(0))
    reduction = built("evit")(tokens, 7, around)
    rest = row.argsort(descending=True)[6:]
    made = (reduction.tokens.origin == -1).nonzero().item()
    assert torch.allclose(
        reduction.tokens.x[made].double(),
        (row[rest].unsqueeze(1) * tokens.x[rest].double()).sum(0),
        atol=1e-6,
    )
    assert torch.equal((reduction.assign == made).nonzero().squeeze(1), rest.sort().values)
    assert reduction.tokens.size[made] == 24
    assert torch.allclose(reduction.tokens.coords[made], tokens.coords[rest].mean(0), atol=1e-5)


def test_ats_keeps_the_tokens_nearest_to_the_quantiles() -> None:
    significance = torch.tensor([0.1, 0.5, 0.05, 0.35])
    # ascending .05 .1 .35 .5 -> distribution .05 .15 .5 1; quantiles of 3: 1/6 1/2 5/6
    assert inverse_transform_sample(significance, 3).tolist() == [0, 1, 3]
    # quantiles of 4: 1/8 (nearest .15), 3/8 and 5/8 (.5, which is kept once), 7/8 (1)
    assert inverse_transform_sample(significance, 4).tolist() == [0, 1, 3]


@pytest.mark.parametrize(("sigma", "achieved"), [(1.0, 8830), (2.0, 4762)])
def test_ats_keeps_few_of_a_peaked_distribution(sigma: float, achieved: int) -> None:
    draw = torch.Generator().manual_seed(0)
    counts = [
        len(inverse_transform_sample((sigma * torch.randn(17182, generator=draw)).exp(), 12453))
        for _ in range(12)  # one draw of sigma 2 is anywhere between 4,400 and 4,800
    ]
    assert abs(sum(counts) / 12 - achieved) < 0.03 * achieved


# --- pitome, dpc-knn -----------------------------------------------------------------------------


def pitome_by_definition(metric: Tensor, drop: int, margin: float) -> Tensor:
    """Row that each row joins, from the whole similarity matrix in float64."""
    unit = normalize(metric.double(), dim=1)
    similarity = unit @ unit.T
    ranked = elu(similarity - margin).mean(1).argsort(descending=True)[: 2 * drop].tolist()
    home = torch.arange(len(metric))
    for row in ranked[::2]:
        home[row] = max(ranked[1::2], key=lambda target: float(similarity[row, target]))
    return home


@pytest.mark.parametrize("drop", [1, 8, 20])
def test_pitome_is_the_published_method_when_the_window_is_the_slide(drop: int) -> None:
    tokens = slide(41)
    around = context(tokens)
    group = built("pitome:margin=0.3")(tokens, 41 - drop, around).assign
    assert same_grouping(group, pitome_by_definition(around.mean_keys(), drop, 0.3))


def test_pitome_in_windows_is_the_method_in_each_window() -> None:
    tokens = slide(40)
    around = context(tokens)
    group = built("pitome:window=10")(tokens, 24, around).assign
    keys = around.mean_keys()
    home = torch.cat([10 * w + pitome_by_definition(keys[10 * w : 10 * w + 10], 4, 0.5) for w in range(4)])
    assert same_grouping(group, home)


def dpc_knn_by_definition(x: Tensor, keep: int, k: int = 5) -> Tensor:
    """Centre of each row, with the published formulas in float64."""
    x = x.double()
    distance = (x.unsqueeze(0) - x.unsqueeze(1)).norm(dim=2) / math.sqrt(x.shape[1])
    density = (-distance.sort(1).values[:, :k].square().mean(1)).exp()
    delta = torch.stack(
        [
            distance[row][density > density[row]].min()
            if bool((density > density[row]).any())
            else distance.max()
            for row in range(len(x))
        ]
    )
    centres = (density * delta).argsort(descending=True)[:keep]
    home = centres[distance[:, centres].argmin(1)]
    home[centres] = centres
    return home


@pytest.mark.parametrize("keep", [1, 5, 30])
def test_dpc_knn_is_the_published_method_when_the_window_is_the_slide(keep: int) -> None:
    x = slide(41).x
    assert same_grouping(density_peaks(x, keep, 41, 5), dpc_knn_by_definition(x, keep))


def test_dpc_knn_clusters_within_windows_and_leaves_none_out() -> None:
    group = density_peaks(slide(40).x, 7, 10, 5)
    assert group.unique().tolist() == list(range(7))
    windows = torch.arange(40) // 10
    assert all(len(windows[group == one].unique()) == 1 for one in range(7))


def test_dpc_knn_widens_its_windows_when_fewer_tokens_than_windows_are_kept() -> None:
    tokens = slide(40)
    assert len(built("dpc-knn:window=2")(tokens, 3, context(tokens)).tokens) == 3


def test_dpc_knn_weights_the_mean_by_a_learned_importance() -> None:
    tokens, reducer = slide(20), built("dpc-knn")
    reduction = reducer(tokens, 4, context(tokens))
    weight = (reducer.importance(tokens.x)).squeeze(1).double().exp()
    for row in range(4):
        members = reduction.assign == row
        mean = (weight[members].unsqueeze(1) * tokens.x[members].double()).sum(0) / weight[members].sum()
        assert torch.allclose(reduction.tokens.x[row].double(), mean, atol=1e-5)


# --- gated-topk, tokenlearner --------------------------------------------------------------------


def test_gated_topk_samples_in_training_as_the_softmax_of_its_logits_says() -> None:
    tokens, reducer = slide(4), built("gated-topk")
    expected = reducer.logits(tokens.x).softmax(0)
    around, seen = context(tokens, training=True), torch.zeros(4)
    for seed in range(1000):
        one = Context(tokens, around.cls, 1, seed, training=True)
        seen[reducer(tokens, 1, one).tokens.origin] += 1
    assert (seen / 1000 - expected).abs().max() < 0.08  # standard deviation at most 0.016


def test_gated_topk_at_inference_keeps_the_widest_gates() -> None:
    tokens, reducer = slide(30), built("gated-topk")
    reduction = reducer(tokens, 7, context(tokens))
    best = reducer.logits(tokens.x).argsort(descending=True)[:7].sort().values
    assert torch.equal(reduction.tokens.origin, best)
    assert torch.equal(reduction.tokens.x, tokens.x[best])


def test_the_gate_is_one_forward_and_a_sigmoid_backward() -> None:
    tokens, reducer = slide(30), built("gated-topk")
    reduction = reducer(tokens, 7, context(tokens, training=True))
    kept = reduction.tokens.origin
    assert torch.allclose(reduction.tokens.x, tokens.x[kept])
    weight = torch.randn(7, DIM, generator=torch.Generator().manual_seed(1))
    (reduction.tokens.x * weight).sum().backward()
    gate = reducer.logits(tokens.x)[kept].sigmoid().detach()
    through = ((weight * tokens.x[kept]).sum(1) * gate * (1 - gate)).sum()
    assert torch.allclose(reducer.gate.bias.grad, through, atol=1e-5)


def test_tokenlearner_slots_are_softmax_means_and_share_out_the_patches() -> None:
    tokens, reducer = slide(30), built("tokenlearner:slots=4")
    reduction = reducer(tokens, 11, context(tokens))
    logits = reducer.mlp.double()(reducer.norm.double()(tokens.x.double()))
    weight = (logits.exp() / logits.exp().sum(0)).T  # [slots, N]
    assert torch.allclose(reduction.tokens.x.double(), weight @ tokens.x.double(), atol=1e-5)
    assert torch.allclose(reduction.tokens.size.double(), (weight / weight.sum(0)).sum(1), atol=1e-4)
    assert torch.allclose(reduction.tokens.coords.double(), weight @ tokens.coords.double(), atol=1e-4)
    assert torch.equal(reduction.assign, weight.argmax(0))


# --- all of them, between the blocks of an encoder -----------------------------------------------

SPECS = [*sorted(set(room.BUILT_INS) - {"reverse", "tokenlearner"}), "reverse(cropr)", "tokenlearner:slots=3"]


def slides(*sizes: int) -> list[SlideInput]:
    return [
        SlideInput(f"slide-{n}", slide(n), torch.rand(n, generator=torch.Generator().manual_seed(n)) < 0.2)
        for n in sizes
    ]


def placed(spec: str) -> BlockEncoder:
    torch.manual_seed(2)
    encoder = encoders.build("slim-tiny", input_dim=DIM)
    encoder.place_reducers(lambda dim: reducers.build(spec, dim=dim), schedule_of(spec))
    assert isinstance(encoder, BlockEncoder)
    return encoder.eval()


def schedule_of(spec: str) -> Schedule:
    """Slots made of slots of slots are nearly equal, and rounding decides which is which."""
    return Once() if spec.startswith("tokenlearner") else Geometric()


@pytest.mark.parametrize("spec", SPECS)
def test_in_an_encoder_a_slide_is_reduced_alike_alone_and_in_a_batch(spec: str) -> None:
    encoder, batch = placed(spec), slides(1, 2, 3, 90)
    plan = Plan(schedule_of(spec), rate=0.8, trace=True)
    with torch.no_grad():
        together = encoder(batch, plan)
        assert together.embedding.isfinite().all()
        for number, one in enumerate(batch):
            alone = encoder([one], plan)
            assert alone.counts[0] == together.counts[number]
            assert torch.allclose(alone.embedding[0], together.embedding[number], atol=1e-4)
            ours, theirs = alone.traces[0], together.traces[number]
            assert torch.equal(ours.token_of_patch(), theirs.token_of_patch())
            assert len(ours.token_of_patch()) == len(one.tokens)


@pytest.mark.parametrize("spec", SPECS)
def test_in_an_encoder_checkpointing_changes_no_gradient(spec: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        encoder = placed(spec).train()
        encoder.checkpointing = checkpointing
        encoded = encoder(slides(1, 40), Plan(schedule_of(spec), rate=0.8))
        parts = [encoded.embedding, *encoded.summaries.values()]
        sum(
            (part.square().sum() for part in parts), torch.zeros(()) if encoded.loss is None else encoded.loss
        ).backward()
        gradients.append({name: parameter.grad for name, parameter in encoder.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient is not None, name
        assert torch.allclose(gradient, gradients[1][name], rtol=1e-4, atol=1e-6), name
