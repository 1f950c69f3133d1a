"""Every shipped reducer against what its paper says, in small numbers and slow arithmetic."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear, normalize

import slimbench.reducers as room
from slimbench.reducer import Context, Reducer
from slimbench.reducers.tome import bipartite_match
from slimbench.registry import reducers
from slimbench.tokens import Tokens

DIM, HEADS = 12, 3


class Ahead:
    """The attention of a block that does not exist: fixed random projections."""

    def __init__(self, dim: int = DIM, heads: int = HEADS) -> None:
        draw = torch.Generator().manual_seed(5)
        self.weight = torch.randn(3, dim, dim, generator=draw, dtype=torch.float64) * dim**-0.5
        self.heads = heads

    def _project(self, x: Tensor, which: int) -> Tensor:
        return linear(x, self.weight[which].to(x.dtype)).unflatten(1, (self.heads, -1))

    def queries(self, x: Tensor) -> Tensor:
        return self._project(x, 0)

    def keys(self, x: Tensor) -> Tensor:
        return self._project(x, 1)

    def mean_keys(self, x: Tensor) -> Tensor:
        return self.keys(x).mean(1)

    def values(self, x: Tensor) -> Tensor:
        return self._project(x, 2)


def slide(n: int, dim: int = DIM, seed: int = 0) -> Tokens:
    draw = torch.Generator().manual_seed(seed)
    side = int(n**0.5) + 1
    coords = torch.stack((torch.arange(n) % side, torch.arange(n) // side), dim=1)
    return Tokens.of(torch.randn(n, dim, generator=draw), coords)


def context(tokens: Tokens, layer: int = 1, **more: object) -> Context:
    draw = torch.Generator().manual_seed(9)
    cls_token = torch.randn(tokens.x.shape[1], generator=draw)
    return Context(tokens, cls_token, layer, seed=11, ahead=Ahead(tokens.x.shape[1]), **more)  # type: ignore[arg-type]


def built(name: str, dim: int = DIM) -> Reducer:
    torch.manual_seed(3)
    reducer = reducers.build(name, dim=dim)
    assert isinstance(reducer, Reducer)
    return reducer


def test_every_file_of_the_room_is_in_its_dictionary() -> None:
    files = {path.stem for path in Path(room.__file__).parent.glob("*.py")} - {"__init__"}
    assert files == {target.split(":")[0].rpartition(".")[2] for target in room.BUILT_INS.values()}


# --- random --------------------------------------------------------------------------------------


def test_random_draws_every_subset_equally_often() -> None:
    tokens, reducer, seen = slide(4), built("random"), torch.zeros(4, 4)
    for seed in range(3000):
        kept = reducer(tokens, 2, Context(tokens, tokens.x[0], 1, seed)).tokens.origin
        seen[kept[0], kept[1]] += 1
    pairs = seen[seen > 0]
    assert len(pairs) == 6  # 3000 draws of 6 pairs: 500 each, standard deviation 20
    assert (pairs - 500).abs().max() < 100


# --- cropr ---------------------------------------------------------------------------------------


def test_cropr_keeps_the_largest_dot_products_in_raster_order() -> None:
    tokens, reducer = slide(30), built("cropr")
    scores = tokens.x.double() @ reducer.query.double()
    kept = reducer(tokens, 7, context(tokens)).tokens.origin
    assert kept.tolist() == sorted(scores.argsort(descending=True)[:7].tolist())


def test_cropr_by_score_returns_the_best_first() -> None:
    tokens, reducer = slide(30), built("cropr:order=score")
    scores = tokens.x.double() @ reducer.query.double()
    assert (
        reducer(tokens, 7, context(tokens)).tokens.origin.tolist()
        == scores.argsort(descending=True)[:7].tolist()
    )


@pytest.mark.parametrize("aggregate_cls", [False, True])
def test_cropr_summary_is_softmax_pooling_and_a_residual_mlp(aggregate_cls: bool) -> None:
    tokens, reducer = slide(30), built(f"cropr:aggregate_cls={aggregate_cls}")
    around = context(tokens, training=True)
    x = torch.cat((around.cls.unsqueeze(0), tokens.x)) if aggregate_cls else tokens.x
    x, q = x.double(), reducer.query.double()
    weight = (x @ q / DIM**0.5).exp()
    z = (weight / weight.sum()) @ x
    normed = (z - z.mean()) / (z.var(unbiased=False) + 1e-6).sqrt()
    up, _, down = (layer.double() for layer in reducer.mlp)
    expected = z + down(torch.nn.functional.gelu(up(normed)))
    reducer.float()
    assert torch.allclose(reducer(tokens, 7, around).summary.double(), expected, atol=1e-5)


def test_cropr_learns_and_lets_the_encoder_be() -> None:
    for detach in (True, False):
        tokens, reducer = slide(30), built(f"cropr:detach={detach}")
        tokens.x.requires_grad_()
        reducer(tokens, 7, context(tokens, training=True)).summary.sum().backward()
        assert all(parameter.grad is not None for parameter in reducer.parameters())
        assert (tokens.x.grad is None) == detach


# --- tome ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 3, 10, 41])
@pytest.mark.parametrize("parity", [0, 1])
@pytest.mark.parametrize("strip", [1, 4, 1024])
def test_strips_find_the_pairs_of_the_full_similarity_matrix(n: int, parity: int, strip: int) -> None:
    metric = slide(n, seed=n).x
    drop = n // 2 - (n > 5)
    unit = normalize(metric.double(), dim=1)
    sources, targets = list(range(parity, n, 2)), list(range(1 - parity, n, 2))
    best = []
    for row in sources:
        similarity, target = max((float(unit[row] @ unit[t]), -t) for t in targets)
        best.append((similarity, row, -target))
    home = {row: row for row in range(n)}
    for _, row, target in sorted(best, reverse=True)[:drop]:
        home[row] = target
    group = bipartite_match(metric, drop, parity, strip)
    for one in range(n):
        for two in range(n):
            assert (group[one] == group[two]) == (home[one] == home[two])


def test_tome_merges_the_size_weighted_mean() -> None:
    tokens = slide(3)
    x = torch.tensor([[1.0, 0.0], [0.9, 0.1], [-1.0, 1.0]])
    tokens = Tokens(x, tokens.coords, torch.tensor([3.0, 1.0, 1.0]), tokens.origin)

    class Itself(Ahead):
        def mean_keys(self, x: Tensor) -> Tensor:
            return x

    around = Context(tokens, x[0], layer=0, seed=0, ahead=Itself())
    merged = built("tome", dim=2)(tokens, 2, around).tokens
    assert torch.allclose(merged.x, torch.tensor([[0.975, 0.025], [-1.0, 1.0]]))
    assert merged.size.tolist() == [4.0, 1.0]
    assert merged.origin.tolist() == [0, 2]


def test_tome_alternates_its_sets_between_blocks() -> None:
    tokens, reducer = slide(40), built("tome")
    groups = [reducer(tokens, 30, context(tokens, layer)).assign for layer in (1, 2)]
    merged = [
        {int(row) for row in range(40) if (group == group[row]).sum() > 1 and row % 2 == parity}
        for group, parity in zip(groups, (1, 0), strict=True)
    ]
    assert all(len(rows) == 10 for rows in merged)


def test_tome_takes_more_than_half_in_rounds() -> None:
    tokens = slide(40)
    reduction = built("tome")(tokens, 3, context(tokens))
    assert len(reduction.tokens) == 3
    assert reduction.tokens.size.sum() == 40
    counts = torch.zeros(3).index_add(0, reduction.assign, torch.ones(40))
    assert torch.equal(counts, reduction.tokens.size)
