"""Tokens: what take, merge and append do to embeddings, places, sizes and origins."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from slimbench.tokens import Tokens, heaviest


def tokens_of(n: int, seed: int = 0, dim: int = 5) -> Tokens:
    draw = torch.Generator().manual_seed(seed)
    return Tokens(
        torch.randn(n, dim, generator=draw),
        torch.rand(n, 2, generator=draw) * 40,
        torch.randint(1, 5, (n,), generator=draw).float(),
        torch.randperm(3 * n, generator=draw)[:n],
    )


def merged_by_hand(tokens: Tokens, assign: Tensor, count: int, weight: Tensor) -> list[tuple[Tensor, ...]]:
    """(x, coords, size, origin) of each merged token, in float64, one member after the other."""
    made = []
    for group in range(count):
        members = [row for row in range(len(tokens)) if assign[row] == group]
        w = weight.double()
        total = sum(w[row] for row in members)
        x = sum((w[row] * tokens.x[row].double() for row in members), torch.zeros(1)) / total
        coords = sum((w[row] * tokens.coords[row].double() for row in members), torch.zeros(1)) / total
        first = max(members, key=lambda row: (float(w[row]), -row))
        made.append((x, coords, sum(tokens.size[row] for row in members), tokens.origin[first]))
    return made


def test_a_slide_without_coordinates_stands_in_a_row() -> None:
    tokens = Tokens.of(torch.zeros(4, 3))
    assert tokens.coords.tolist() == [[0, 0], [1, 0], [2, 0], [3, 0]]
    assert tokens.size.tolist() == [1, 1, 1, 1]
    assert tokens.origin.tolist() == [0, 1, 2, 3]


def test_take_moves_all_four_fields_alike() -> None:
    tokens, index = tokens_of(9), torch.tensor([7, 0, 3])
    taken = tokens.take(index)
    for name in ("x", "coords", "size", "origin"):
        assert torch.equal(getattr(taken, name), getattr(tokens, name)[index])


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 25), st.integers(0, 1000), st.booleans())
def test_merge_is_the_weighted_mean_of_each_group(n: int, seed: int, weighted: bool) -> None:
    tokens = tokens_of(n, seed)
    draw = torch.Generator().manual_seed(seed)
    count = int(torch.randint(1, n + 1, (), generator=draw))
    assign = torch.cat((torch.arange(count), torch.randint(0, count, (n - count,), generator=draw)))
    assign = assign[torch.randperm(n, generator=draw)]
    weight = torch.rand(n, generator=draw) + 0.1 if weighted else None
    merged = tokens.merge(assign, count, weight)
    expected = merged_by_hand(tokens, assign, count, tokens.size if weight is None else weight)
    for row, (x, coords, size, origin) in enumerate(expected):
        assert torch.allclose(merged.x[row].double(), x, atol=1e-5)
        assert torch.allclose(merged.coords[row].double(), coords, atol=1e-4)
        assert merged.size[row] == size
        assert merged.origin[row] == origin
    assert merged.size.sum() == tokens.size.sum()


def test_merge_averages_bf16_in_fp32() -> None:
    tokens = Tokens.of(torch.tensor([[256.0], [1.0]] * 100).bfloat16())
    merged = tokens.merge(torch.zeros(200, dtype=torch.int64), 1)
    assert merged.x.dtype == torch.bfloat16
    assert abs(float(merged.x) - 128.5) <= 0.5  # bf16 sums would stop growing long before


def test_the_gradient_of_a_merge_is_the_share_of_each_member() -> None:
    tokens = tokens_of(3)
    x = tokens.x.clone().requires_grad_()
    tokens.replace_x(x).merge(torch.tensor([0, 1, 0]), 2).x[0].sum().backward()
    share = tokens.size[[0, 2]] / tokens.size[[0, 2]].sum()
    assert torch.allclose(x.grad[:, 0], torch.tensor([share[0], 0.0, share[1]]))


def test_appended_tokens_stand_at_no_patch() -> None:
    tokens = tokens_of(3).append(torch.ones(1, 5, dtype=torch.float64), torch.ones(1, 2), torch.tensor([7.0]))
    assert tokens.x.dtype == torch.float32
    assert tokens.origin[-1] == -1
    assert tokens.size[-1] == 7
    assert len(tokens) == 4


@pytest.mark.parametrize(
    ("weight", "row"), [([1.0, 3.0, 2.0], 1), ([2.0, 2.0, 2.0], 0), ([1.0, 2.0, 2.0], 1)]
)
def test_the_heaviest_member_is_the_first_of_equals(weight: list[float], row: int) -> None:
    assert heaviest(torch.zeros(3, dtype=torch.int64), 1, torch.tensor(weight)).tolist() == [row]


def test_an_empty_group_has_no_heaviest_member() -> None:
    assert heaviest(torch.tensor([1, 1]), 3, torch.ones(2)).tolist() == [2, 0, 2]
