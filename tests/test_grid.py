"""From what a user types to the cells of a sweep."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimbench.cohorts.cohort import Defaults
from slimbench.errors import UsageError
from slimbench.runs.grid import check_plugins, grid, parse_rates, parse_seeds

DEFAULTS = Defaults(encoder="slim-tiny", text="tfidf", recipe="tiny", tasks=("linear-probe", "retrieval"))


def rows(**options):
    """(encoder, reducer, schedule, rate, trained_at, seed) of every cell of a grid."""
    cells = grid(**options).cells(DEFAULTS)
    return [(c.encoder, c.reducer, c.schedule, c.rate, c.trained_at, c.seed) for c in cells]


@pytest.mark.parametrize(
    ("text", "rates"),
    [
        ("0.5-0.9", (0.5, 0.6, 0.7, 0.8, 0.9)),
        ("0.5-0.9:0.2", (0.5, 0.7, 0.9)),
        ("0.1-0.25:0.05", (0.1, 0.15, 0.2, 0.25)),
        ("0.5,0.8", (0.5, 0.8)),
        ("0.8, 0.5-0.6, 0.5", (0.8, 0.5, 0.6)),
        ("0", (0.0,)),
        (0.9, (0.9,)),
        (1e-5, (0.00001,)),
        ([0.5, 0.75], (0.5, 0.75)),
    ],
)
def test_rates_mean_what_a_person_expects(text, rates):
    assert parse_rates(text) == rates


@given(st.integers(0, 99), st.integers(0, 99))
def test_a_range_of_rates_holds_both_its_ends_and_no_rounding(first, last):
    first, last = sorted((first, last))
    rates = parse_rates(f"{first / 100}-{last / 100}:0.01")
    assert rates == tuple(number / 100 for number in range(first, last + 1))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1", r"lies in \[0, 1\), got 1; 0.8 means that 20 % are kept"),
        ("80", "got 80"),
        ("0.5-1.0", "got 1.0"),
        ("0.9-0.5", "write it upwards"),
        ("0.5-0.9:0", "holds no rate"),
        ("0.5-", "neither a rate nor a range"),
        ("half", "neither a rate nor a range"),
        ("-0.5", "neither a rate nor a range"),
        ("0.1.2", "is no number"),
        ("", "names no number"),
        ([], "names no number"),
    ],
)
def test_rates_that_mean_nothing_are_answered_in_one_line(text, message):
    with pytest.raises(UsageError, match=message) as caught:
        parse_rates(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "seeds"), [("0-2", (0, 1, 2)), ("0,3", (0, 3)), (7, (7,)), ([1, 0, 1], (1, 0)), ("3-3", (3,))]
)
def test_seeds_mean_what_a_person_expects(text, seeds):
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["2-0", "a", "0.5", "-1", "", "1-2-3"])
def test_seeds_that_mean_nothing_are_refused(text):
    with pytest.raises(UsageError):
        parse_seeds(text)


def test_the_grid_adds_the_rows_that_all_others_are_read_against():
    assert rows(reducers="cropr", rates="0.5,0.9") == [
        ("mean-pool", "none", "geometric", 0.0, 0.0, 0),
        ("slim-tiny", "none", "geometric", 0.0, 0.0, 0),
        ("slim-tiny", "cropr", "geometric", 0.5, 0.5, 0),
        ("slim-tiny", "cropr", "geometric", 0.9, 0.9, 0),
    ]
    assert rows(reducers="cropr", rates=0.5, baselines=False) == [
        ("slim-tiny", "cropr", "geometric", 0.5, 0.5, 0)
    ]


def test_no_cell_stands_twice_and_a_reducer_that_keeps_everything_has_one_rate():
    made = rows(reducers=["none", "random", "random"], rates="0.5-0.6", encoders=["mean-pool", "slim-tiny"])
    assert len(made) == len(set(made)) == 2 * (1 + 2)
    assert {rate for _, reducer, _, rate, _, _ in made if reducer == "none"} == {0.0}


def test_seeds_come_one_after_the_other_so_that_a_whole_table_stands_early():
    seeds = [row[-1] for row in rows(reducers="random", rates="0.5-0.9", seeds="0-2")]
    assert seeds == sorted(seeds) and len(seeds) == 3 * 7


def test_one_model_at_many_rates_is_trained_at_the_one_rate():
    made = rows(reducers="cropr", rates="0.5,0.9", trained_at=0.8, baselines=False)
    assert [(rate, trained_at) for _, _, _, rate, trained_at, _ in made] == [(0.5, 0.8), (0.9, 0.8)]


def test_the_unpruned_row_is_the_same_cell_whatever_the_schedule():
    both = rows(reducers="random", rates=0.5, schedules=["geometric", "input"])
    assert [row[2] for row in both if row[1] == "random"] == ["geometric", "input"]
    assert sum(row[:2] == ("slim-tiny", "none") for row in both) == 1
    assert set(rows(reducers="random", rates=0.5, schedules="input")) <= set(both)


def test_a_schedule_written_around_a_reducer_holds_for_its_row_alone():
    made = rows(reducers=["input(random)", "random"], rates=0.5, baselines=False)
    assert [row[1:3] for row in made] == [("random", "input"), ("random", "geometric")]


def test_one_plugin_has_one_spelling():
    made = rows(
        reducers=["tome: order=score , proportional=true", "tome:proportional=true,order=score"], rates=0.5
    )
    assert [row[1] for row in made if row[1] != "none"] == ["tome:order=score,proportional=true"]


def test_what_is_left_out_is_the_cohorts_own_default():
    (cell, *_) = grid("random", 0.5, baselines=False).cells(DEFAULTS)
    assert (cell.encoder, cell.text, cell.recipe, cell.tasks) == (
        "slim-tiny",
        "tfidf",
        "tiny",
        DEFAULTS.tasks,
    )
    (cell, *_) = grid("random", 0.5, baselines=False, tasks="retrieval", text="hf").cells(DEFAULTS)
    assert (cell.tasks, cell.text) == (("retrieval",), "hf")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reducers": "croper"}, "no reducer is called 'croper'; did you mean cropr"),
        ({"reducers": "reverse(croper)"}, "no reducer is called 'croper'"),
        ({"reducers": "missing.py:Mine"}, "no file missing.py"),
        ({"encoders": "slim-tny"}, "no encoder is called 'slim-tny'; did you mean slim-tiny"),
        ({"tasks": "retrival"}, "no task is called 'retrival'; did you mean retrieval"),
        ({"text": "tfid"}, "no text tower is called 'tfid'; did you mean tfidf"),
        ({"schedules": "geometrc"}, "no schedule is called 'geometrc'"),
        ({"schedules": "once:before=2"}, "once takes no argument 'before'"),
        ({"recipe": "papre"}, "no recipe is called 'papre'"),
        ({"recipe": "paper:epochs=many"}, "epochs=many is not a whole number"),
        ({"precision": "fp16"}, "no precision is called 'fp16'; known: fp32, bf16"),
        ({"trained_at": 1.0}, "lies in"),
    ],
)
def test_an_unknown_name_is_answered_before_anything_is_opened(options, message):
    with pytest.raises(UsageError, match=message) as caught:
        grid(**({"reducers": "random", "rates": 0.5} | options))
    assert "\n" not in str(caught.value)


def test_arguments_are_checked_against_the_plugins_own_signature():
    check_plugins([("reducer", "random"), ("encoder", "mean-pool"), ("reducer", "reverse(random)")])
    with pytest.raises(UsageError, match="random takes no argument 'colour'"):
        check_plugins([("reducer", "reverse(random:colour=red)")])
    with pytest.raises(UsageError, match="takes no argument 'input_dim'"):
        check_plugins([("encoder", "mean-pool:input_dim=3")])


def test_a_grid_is_made_without_torch():
    code = "import sys; from slimbench.runs.grid import grid; grid('cropr'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "False\n"


def test_a_reducer_of_a_fixed_number_has_one_row_whatever_the_rates():
    found = rows(reducers=["once(tokenlearner:slots=8):after=2", "random"], rates="0.5,0.9", baselines=False)
    assert [row[1:4] for row in found] == [
        ("tokenlearner:slots=8", "once:after=2", 0.0),
        ("random", "geometric", 0.5),
        ("random", "geometric", 0.9),
    ]


def test_the_room_lists_every_reducer_of_a_fixed_number():
    code = (
        "from slimbench.registry import reducers; from slimbench.reducers import FIXED; "
        "found = [n for n, p in reducers.plugins().items() if getattr(p.load(), 'count', '') == 'fixed']; "
        "assert found == sorted(FIXED), found"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
