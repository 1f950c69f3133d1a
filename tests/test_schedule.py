"""Schedules: the budget of every block, from the slide's own number of patches."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimbench.errors import UsageError
from slimbench.schedule import SCHEDULES, Geometric, Input, Linear, Once, own_schedule, schedule

RATES = st.sampled_from([0.0, 0.1, 0.5, 0.6, 0.7, 0.8, 0.9, 0.99])


@given(st.integers(1, 20000), RATES)
def test_geometric_is_the_papers_compounded_floor(patches: int, rate: float) -> None:
    per_block, current, expected = (1 - rate) ** (1 / 5), patches, []
    for _ in range(5):
        current = max(1, math.floor(per_block * current + 1e-6))
        expected.append(current)
    assert list(Geometric().counts(patches, 6, rate).values()) == expected


def test_geometric_on_the_papers_slide() -> None:
    means = []
    for rate in (0.5, 0.6, 0.7, 0.8, 0.9):
        counts = [*Geometric().counts(17182, 6, rate).values()]
        assert 0 <= (1 - rate) * 17182 - counts[-1] < 5  # at most one patch a floor
        means.append(round((17182 + sum(counts)) / 6 / 17182, 3))
    # Mean share of tokens in a block, the bulk of the paper's relative FLOPs (.72 .66 .59 .52 .42, table 5).
    assert means == [0.727, 0.664, 0.595, 0.518, 0.423]


def test_compounding_leaves_small_slides_with_less_than_their_share() -> None:
    assert Geometric().counts(30, 6, 0.9) == {1: 18, 2: 11, 3: 6, 4: 3, 5: 1}
    assert Geometric(exact=True).counts(30, 6, 0.9)[5] == 3


@given(st.sampled_from(sorted(SCHEDULES)), st.integers(1, 5000), RATES, st.integers(0, 9), st.integers(1, 12))
def test_every_schedule_falls_and_stays_in_its_bounds(
    name: str, patches: int, rate: float, least: int, depth: int
) -> None:
    if name == "once" and depth == 1:
        return
    counts = [*SCHEDULES[name](least=least).counts(patches, depth, rate).values()]
    assert counts == sorted(counts, reverse=True)
    assert all(min(max(least, 1), patches) <= count <= patches for count in counts)
    if rate == 0:
        assert counts == [patches] * len(counts)


@given(st.integers(100, 20000), RATES, st.integers(2, 12))
def test_all_schedules_end_at_the_same_share(patches: int, rate: float, depth: int) -> None:
    for kind in (Geometric(), Geometric(exact=True), Linear(), Once(), Input()):
        *_, last = kind.counts(patches, depth, rate).values()
        assert abs(last - max(1, (1 - rate) * patches)) <= depth


def test_where_the_modules_stand() -> None:
    assert Geometric().modules(6) == Linear().modules(6) == (1, 2, 3, 4, 5)
    assert Input().modules(6) == (0,)
    assert Once(after=2).modules(6) == (2,)
    assert Geometric().modules(1) == Geometric().modules(0) == (0,)


@pytest.mark.parametrize("rate", [1.0, -0.1, 80.0])
def test_a_rate_outside_its_range_is_refused(rate: float) -> None:
    with pytest.raises(UsageError, match=r"0\.8 means that 20 % are kept"):
        Geometric().counts(100, 6, rate)


def test_a_schedule_is_written_like_a_plugin() -> None:
    assert schedule("once:after=2,least=8") == Once(least=8, after=2)
    assert schedule("geometric") == Geometric()
    with pytest.raises(UsageError, match="known: geometric"):
        schedule("cosine")
    with pytest.raises(UsageError, match="6 blocks"):
        schedule("once:after=6").counts(100, 6, 0.5)


@pytest.mark.parametrize(
    ("written", "reducer", "own"),
    [
        ("cropr", "cropr", "geometric"),
        ("cropr:order=score", "cropr:order=score", "geometric"),
        ("reverse(cropr)", "reverse(cropr)", "geometric"),
        ("once(tome):after=2", "tome", "once:after=2"),
        ("once(cropr:order=score,detach=false):after=2", "cropr:detach=false,order=score", "once:after=2"),
        ("input(reverse(mine.py:Mine:alpha=2))", "reverse(mine.py:Mine:alpha=2)", "input"),
    ],
)
def test_a_schedule_around_a_reducer_is_its_own(written: str, reducer: str, own: str) -> None:
    assert own_schedule(written, "geometric") == (reducer, own)


@pytest.mark.parametrize("text", ["once(tome", "once(tome)after=2"])
def test_brackets_are_closed(text: str) -> None:
    with pytest.raises(UsageError, match="brackets are not closed"):
        own_schedule(text, "geometric")
