"""What the base class does for every reducer: ranking, counts, order, rounds, gradients, checks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from slimbench.conformance.cases import made_context, made_slide
from slimbench.errors import ReducerError, UsageError
from slimbench.reducer import Context, Merger, Pooler, Pruner, Reducer, Reduction
from slimbench.registry import reducers
from slimbench.tokens import Tokens

DIM = 6


class ByFirstChannel(Pruner):
    def score(self, tokens: Tokens, context: Context) -> Tensor:
        return tokens.x[:, 0]


class Grouped(Merger):
    """Merges as it is told."""

    def __init__(self, dim: int, group: list[int]) -> None:
        super().__init__(dim)
        self.group = torch.tensor(group)

    def assign(self, tokens: Tokens, keep: int, context: Context) -> tuple[Tensor, None]:
        return self.group, None


def ranked(*scores: float) -> Tokens:
    tokens = made_slide(len(scores), DIM)
    x = tokens.x.clone()
    x[:, 0] = torch.tensor(scores)
    return tokens.replace_x(x)


def test_ties_go_to_the_lower_row() -> None:
    tokens = ranked(1, 2, 2, 1, 2, 1)
    kept = ByFirstChannel(DIM)(tokens, 4, made_context(tokens)).tokens.origin
    assert kept.tolist() == [0, 1, 2, 4]


def test_pruned_tokens_leave_in_raster_order_or_by_score() -> None:
    tokens = ranked(1, 5, 3, 4)
    for order, expected in (("raster", [1, 2, 3]), ("score", [1, 3, 2])):
        reduction = ByFirstChannel(DIM, order=order)(tokens, 3, made_context(tokens))  # type: ignore[arg-type]
        assert reduction.tokens.origin.tolist() == expected
        assert [
            expected.index(row) if row in expected else -1 for row in range(4)
        ] == reduction.assign.tolist()


def test_a_ranking_under_autocast_is_in_fp32() -> None:
    class Learned(Pruner):
        def __init__(self, dim: int) -> None:
            super().__init__(dim)
            self.query = nn.Parameter(torch.ones(dim))

        def score(self, tokens: Tokens, context: Context) -> Tensor:
            return tokens.x @ self.query

    tokens, reducer = made_slide(3000, DIM), Learned(DIM)
    plain = reducer(tokens, 300, made_context(tokens)).scores
    with torch.autocast("cpu", torch.bfloat16):
        cast = reducer(tokens, 300, made_context(tokens)).scores
    assert torch.equal(plain, cast)


def test_merged_tokens_stand_at_the_row_of_their_heaviest_member() -> None:
    tokens = made_slide(5, DIM)
    tokens = replace(tokens, size=torch.tensor([1.0, 1, 1, 1, 3]))
    reduction = Grouped(DIM, [1, 0, 2, 2, 1])(tokens, 3, made_context(tokens))
    assert reduction.tokens.origin.tolist() == [1, 2, 4]
    assert reduction.assign.tolist() == [2, 0, 1, 1, 2]


def test_a_made_token_stands_at_the_mean_row_of_its_patches() -> None:
    class Fused(Reducer):
        def reduce(self, tokens: Tokens, keep: int, context: Context) -> Reduction:
            rest = torch.tensor([1, 2, 3])  # mean row 2, between the kept rows 0 and 4
            kept = tokens.take(torch.tensor([0, 4]))
            made = kept.append(
                tokens.x[rest].mean(0, True), tokens.coords[rest].mean(0, True), torch.tensor([3.0])
            )
            return Reduction(made, torch.tensor([0, 2, 2, 2, 1]))

    tokens = made_slide(5, DIM)
    reduction = Fused(DIM)(tokens, 3, made_context(tokens))
    assert reduction.tokens.origin.tolist() == [0, -1, 4]
    assert reduction.assign.tolist() == [0, 1, 1, 1, 2]


def test_rounds_compose_to_one_assignment() -> None:
    class Pairs(Merger):
        max_drop = 0.5

        def assign(self, tokens: Tokens, keep: int, context: Context) -> tuple[Tensor, None]:
            drop = len(tokens) - keep
            rows = torch.arange(len(tokens))
            return torch.where(rows < 2 * drop, rows // 2, rows - drop), None

    tokens = made_slide(16, DIM)
    reduction = Pairs(DIM)(tokens, 3, made_context(tokens))  # 16 -> 8 -> 4 -> 3
    assert reduction.assign.tolist() == [0] * 8 + [1] * 4 + [2] * 4
    for row in range(3):
        members = reduction.assign == row
        assert torch.allclose(reduction.tokens.x[row], tokens.x[members].mean(0), atol=1e-6)


def test_a_reducer_that_may_drop_little_still_gets_there() -> None:
    class OneByOne(Reducer):
        max_drop = 0.01

        def reduce(self, tokens: Tokens, keep: int, context: Context) -> Reduction:
            assert keep == len(tokens) - 1
            return Reduction.keeping(tokens, torch.arange(keep))

    tokens = made_slide(5, DIM)
    assert len(OneByOne(DIM)(tokens, 2, made_context(tokens)).tokens) == 2


def test_pooled_sizes_add_up_even_where_weights_vanish() -> None:
    class Far(Pooler):
        count = "fixed"

        def weights(self, tokens: Tokens, keep: int, context: Context) -> Tensor:
            w = torch.zeros(2, len(tokens))
            w[:, 0] = 1
            return w

    tokens = made_slide(7, DIM, merged=True)
    reduction = Far(DIM)(tokens, 3, made_context(tokens))
    assert torch.isclose(reduction.tokens.size.sum(), tokens.size.sum())


def test_forward_is_sealed() -> None:
    with pytest.raises(TypeError, match="write score"):

        class Mine(Pruner):
            def forward(self, tokens: Tokens, keep: int, context: Context) -> Reduction:  # type: ignore[misc]
                return Reduction(tokens)


def test_at_least_one_token_is_kept() -> None:
    tokens = made_slide(3, DIM)
    with pytest.raises(UsageError, match="at least one"):
        ByFirstChannel(DIM)(tokens, 0, made_context(tokens))


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ([0, 0, 0, 0], "returned 1 tokens where 2 of 4"),
        ([0, 0, 2, 2], "each group a member"),
        ([0, 1, -1, 1], "each group a member"),
        ([0, 1], "each of 4 tokens"),
    ],
)
def test_a_wrong_assignment_is_named(group: list[int], message: str) -> None:
    tokens = made_slide(4, DIM)
    with pytest.raises(ReducerError, match=message):
        Grouped(DIM, group)(tokens, 2, made_context(tokens))


def test_a_reducer_of_an_encoder_without_attention_says_so() -> None:
    tokens = made_slide(4, DIM)
    with pytest.raises(ReducerError, match="an encoder with blocks"):
        reducers.build("tome", dim=DIM)(tokens, 2, Context(tokens, tokens.x[0], 0, 0))


def test_every_parameter_gets_a_gradient_when_nothing_has_to_go() -> None:
    tokens, reducer = made_slide(4, DIM), reducers.build("gated-topk", dim=DIM)
    reduction = reducer(tokens, 4, made_context(tokens, training=True))
    reduction.loss.backward()
    assert all(parameter.grad is not None for parameter in reducer.parameters())
    assert reducer(tokens, 4, made_context(tokens)).loss is None


def test_without_a_trace_a_pruner_records_nothing() -> None:
    tokens = made_slide(4, DIM)
    reduction = ByFirstChannel(DIM)(tokens, 2, made_context(tokens, trace=False))
    assert reduction.assign is None
    assert reduction.scores is None


def test_a_wrapper_is_built_with_its_arguments_and_hashed_with_what_it_wraps() -> None:
    built = reducers.build("reverse(cropr:order=score,detach=false)", dim=DIM)
    assert (built.order, built.of.detach) == ("score", False)
    hashes = {
        reducers.code_hash(spec)
        for spec in ("cropr", "reverse(cropr)", "reverse(norm)", "reverse(cropr:order=score)")
    }
    assert len(hashes) == 3
    with pytest.raises(UsageError, match=r"write reverse\(NAME\)"):
        reducers.build("reverse", dim=DIM)
    with pytest.raises(UsageError, match="wraps no other reducer"):
        reducers.build("tome(cropr)", dim=DIM)
