"""`slimbench analyse`: from kept sets in a results folder to numbers that were worked out another way."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from slimbench.analysis import places
from slimbench.analysis.board import Analysis, analyse
from slimbench.analysis.flips import flips
from slimbench.analysis.pairs import Masks, pairs
from slimbench.analysis.paths import kept_reach
from slimbench.analysis.quantities import Quantity, pooled
from slimbench.cli import run
from slimbench.cohorts import open_cohort
from slimbench.encoder import Plan, SlideInput
from slimbench.encoders.slim import Slim
from slimbench.errors import CohortError, RecordError, UsageError
from slimbench.leaderboard.rows import Row, Setting, rows
from slimbench.leaderboard.table import Cell, Table
from slimbench.measure.reach import reached
from slimbench.registry import reducers
from slimbench.runs.record import Cell as GridCell
from slimbench.runs.record import Identity, Kept, Record, TaskOutcome
from slimbench.runs.store import Store
from slimbench.schedule import Geometric
from slimbench.statistics.means import clustered_error
from slimbench.statistics.spread import mean_distance, mean_distance_of_random
from slimbench.tokens import Tokens

DIGITS = open_cohort("digits")
SLIDES = DIGITS.split("test")[:24]
DEPTH = 6
CLASSES = ["a", "b"]


def left_by(order: np.ndarray, rate: float) -> np.ndarray:
    """Trace.left where patches leave from the end of `order` by the geometric schedule."""
    left = np.full(len(order), 255, np.uint8)
    for block, count in sorted(Geometric().counts(len(order), DEPTH, rate).items(), reverse=True):
        left[order[count:]] = block
    return left


def made(choose: Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray], rate: float, seed: int):
    """{slide id: left}; `choose` orders the patches of a slide from its lesion, its rows and a generator."""
    found = {}
    for number, slide in enumerate(SLIDES):
        lesion = DIGITS.patches(slide.id).lesion
        draw = np.random.default_rng((seed, number, round(10 * rate)))
        found[slide.id] = left_by(choose(lesion, np.arange(slide.patches), draw), rate)
    return found


def write(
    store: Store,
    reducer: str,
    rate: float,
    seed: int,
    lefts: dict[str, np.ndarray],
    wrong: tuple[int, ...] = (),
    fingerprint: str = DIGITS.fingerprint,
    tokens: float | None = None,
) -> Record:
    """A cell with its kept sets, and with a probe that is wrong on the slides numbered `wrong`."""
    cell = GridCell(
        encoder="slim-tiny",
        reducer=reducer,
        rate=rate,
        trained_at=rate,
        seed=seed,
        cohort="digits",
        text="tfidf",
        recipe="tiny",
        tasks=("linear-probe",),
    )
    identity = Identity(cohort=fingerprint, code={})
    key = identity.key(cell)
    labels = [CLASSES[number % 2] for number in range(len(SLIDES))]
    predicted = [
        CLASSES[1 - number % 2] if number in wrong else labels[number] for number in range(len(SLIDES))
    ]
    frame = pd.DataFrame(
        {
            "slide_id": [slide.id for slide in SLIDES],
            "patient": [slide.patient for slide in SLIDES],
            "label": labels,
            "predicted": predicted,
        }
    )
    there = [float(np.mean([(left > block).sum() for left in lefts.values()])) for block in range(DEPTH)]
    record = Record(
        key=key,
        cell=cell,
        identity=identity,
        cohort_name="digits",
        status="ok",
        kept=Kept(
            tokens_per_block=tuple(there if tokens is None else [tokens] * DEPTH),
            share=1 - rate,
            single_token=0,
            n=len(SLIDES),
        ),
        tasks={
            "linear-probe": TaskOutcome(
                primary="accuracy",
                metrics=({"name": "accuracy", "value": 0.5, "n": 24},),
                facts={"classes": CLASSES},
                predictions=store.write_predictions(key, "linear-probe", frame),
            )
        },
        started=datetime(2026, 1, 1, tzinfo=UTC),
        ended=datetime(2026, 1, 1, tzinfo=UTC),
        seconds=1.0,
    )
    store.write_kept_sets(key, lefts)
    return store.write_record(record)


def lesion_first(lesion, rows, draw):
    return np.argsort(~lesion, kind="stable")


def lesion_last(lesion, rows, draw):
    return np.lexsort((-rows, lesion))


def by_chance(lesion, rows, draw):
    return draw.permutation(rows)


def top(lesion, rows, draw):
    return rows


REDUCERS = {"oracle": lesion_first, "reverse(oracle)": lesion_last, "random": by_chance, "top": top}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Four reducers at two rates and two seeds, one that keeps no patch, and the whole slides."""
    store = Store(tmp_path_factory.mktemp("out"))
    store.prepare()
    for seed in (0, 1):
        whole = made(top, 0.0, seed)
        write(store, "none", 0.0, seed, whole, wrong=(0, 1, 2) if seed else (0, 1))
        for reducer, choose in REDUCERS.items():
            for rate in (0.5, 0.8):
                write(store, reducer, rate, seed, made(choose, rate, seed), wrong=(1, 5, 6, 7))
        gone = {slide.id: np.full(slide.patches, 1, np.uint8) for slide in SLIDES}
        write(store, "slots", 0.0, seed, gone, tokens=16.0)
    return store


@pytest.fixture(scope="module")
def found(store: Store) -> Analysis:
    return analyse(store, store.scan().records.values())


def lines(analysis: Analysis, title: str) -> list[dict[str, Cell]]:
    (table,) = [table for table in analysis.tables if table.title == f"digits: {title}"]
    return cells(table)


def cells(table: Table) -> list[dict[str, Cell]]:
    names = [f"{column.group} {column.title}".strip() for column in table.columns]
    return [dict(zip(names, row, strict=True)) for row in table.rows]


def line(analysis: Analysis, title: str, **named: object) -> dict[str, Cell]:
    (one,) = [
        each
        for each in lines(analysis, title)
        if all(each[name.replace("_", " ")].value == value for name, value in named.items())
    ]
    return one


# --- what is kept -----------------------------------------------------------------------------------------


def test_recall_and_enrichment_are_those_of_the_lesion_with_the_interval_of_a_ratio(
    store: Store, found: Analysis
) -> None:
    one = line(found, "what is kept", reducer="random", rate=0.8)
    recalls, shares = [], []
    for slide in SLIDES:
        lesion = DIGITS.patches(slide.id).lesion
        kept = [made(by_chance, 0.8, seed)[slide.id] == 255 for seed in (0, 1)]
        recalls.append(np.mean([mask[lesion].mean() for mask in kept]))
        shares.append(np.mean([mask.mean() for mask in kept]))
    ratio = np.mean(recalls) / np.mean(shares)
    assert one["lesion recall mean"].value == pytest.approx(np.mean(recalls))
    assert one["lesion enrichment mean"].value == pytest.approx(ratio)
    low, high = one["lesion enrichment 95 % slides"].value
    pull = np.array(recalls) - ratio * np.array(shares)
    error = clustered_error(pull, [slide.patient for slide in SLIDES]) / np.mean(shares)
    assert (high - low) / 2 == pytest.approx(1.959964 * error, rel=1e-6)
    assert (one["slides"].value, one["seeds"].value) == (len(SLIDES), 2)
    assert line(found, "what is kept", reducer="oracle", rate=0.8)["lesion recall mean"].value == 1
    assert line(found, "what is kept", reducer="reverse(oracle)", rate=0.8)["lesion recall mean"].value == 0


def test_the_values_of_a_slide_are_those_of_its_kept_set(found: Analysis) -> None:
    frame = found.slides
    slide = SLIDES[3]
    (row,) = frame[
        (frame["reducer"] == "random")
        & (frame["rate"] == 0.5)
        & (frame["seed"] == 1)
        & (frame["slide_id"] == slide.id)
    ].to_dict("records")
    left = made(by_chance, 0.5, 1)[slide.id]
    coords, kept = DIGITS.patches(slide.id).coords, left == 255
    assert row["mean_depth"] == pytest.approx(np.where(left == 255, DEPTH, left).mean())
    distances = np.linalg.norm(coords[:, None] - coords[kept][None], axis=2).min(1)
    assert mean_distance(coords, kept) == pytest.approx(distances.mean())
    chance = mean_distance_of_random(coords, int(kept.sum()), 500, 0)
    assert row["coverage"] == pytest.approx(distances.mean() / chance, rel=0.1)
    assert row["patches_before_1"] == 1 and row["patches_before_6"] == pytest.approx(kept.mean())
    assert row["patient"] == slide.patient


def test_the_first_rows_are_told_from_random_ones_by_every_measure_of_place(found: Analysis) -> None:
    first, chance = (line(found, "what is kept", reducer=name, rate=0.8) for name in ("top", "random"))
    assert first["raster bias mean"].value == pytest.approx(-0.4, abs=0.01)
    assert chance["raster bias 95 % slides"].value[0] < 0 < chance["raster bias 95 % slides"].value[1]
    assert first["coverage mean"].value > 2 and chance["coverage mean"].value == pytest.approx(1, abs=0.1)
    assert first["morans i mean"].value > 0.5 > abs(chance["morans i mean"].value)
    assert first["pieces kept mean"].value <= chance["pieces kept mean"].value == 1


def test_survival_falls_with_the_schedule_and_the_oracle_keeps_the_lesion(found: Analysis) -> None:
    oracle = line(found, "block by block", reducer="oracle", rate=0.8)
    shares = [oracle[f"patches that enter block {block}"].value for block in range(1, 7)]
    assert shares[0] == 1 and shares == sorted(shares, reverse=True) and shares[-1] < 0.2
    assert [oracle[f"lesion that enters block {block}"].value for block in range(1, 7)] == [1] * 6


def test_a_reducer_whose_tokens_stand_at_no_patch_says_so_and_divides_nothing(found: Analysis) -> None:
    slots = line(found, "what is kept", reducer="slots")
    assert slots["marks"].text == "its tokens stand at no patch"
    for name in ("coverage", "raster bias", "lesion recall", "reach"):
        assert slots[f"{name} mean"].text == ""
    (note,) = [note for note in found.tables[0].notes if note.startswith("no reach")]
    assert "slots" in note


def test_reach_of_the_kept_is_that_of_the_pass_itself() -> None:
    encoder = Slim(6, width=16, heads=4, depth=3, mlp=16, segments=(8, 16), ratios=(1, 4)).eval()
    encoder.place_reducers(lambda dim: reducers.build("random", dim=dim), Geometric())
    encoded = encoder([SlideInput("a", Tokens.of(torch.randn(60, 6)))], Plan(Geometric(), 0.5, trace=True))
    assert encoded.traces is not None
    trace, counts = encoded.traces[0], encoded.counts[0]
    found = reached(encoder, trace, counts, 2)
    assert found is not None
    expected = float(found[trace.kept()].float().mean())
    assert 0 < expected < 1
    assert kept_reach(encoder, trace.left().numpy(), 3) == pytest.approx(expected)
    assert math.isnan(kept_reach(encoder, np.ones(5, np.uint8), 3))


# --- in common --------------------------------------------------------------------------------------------


def test_bits_count_the_patches_that_both_keep() -> None:
    draw = np.random.default_rng(0)
    one, two = (
        {f"s{n}": draw.choice([1, 255], n).astype(np.uint8) for n in (1, 7, 8, 9, 31)} for _ in range(2)
    )
    expected = [int(((one[name] == 255) & (two[name] == 255)).sum()) for name in one]
    first = Masks.of(one, 6)
    assert first.common(Masks.of(two, 6)).tolist() == expected
    assert first.sizes.tolist() == [int((left == 255).sum()) for left in one.values()]


def test_reducers_are_compared_at_one_rate_by_the_same_seed(found: Analysis) -> None:
    every = lines(found, "in common between reducers")
    assert len(every) == 2 * 6
    apart = line(
        found, "in common between reducers", reducer="oracle", other_reducer="reverse(oracle)", rate=0.8
    )
    chance = line(found, "in common between reducers", reducer="oracle", other_reducer="random", rate=0.8)
    assert apart["kappa mean"].value < chance["kappa 95 % slides"].value[0] < 0
    assert chance["kappa 95 % slides"].value[1] > 0
    assert chance["iou mean"].value == pytest.approx(chance["iou by chance"].value, abs=0.02)
    kappas = [each["kappa mean"].value for each in every if each["rate"].value == 0.8]
    assert kappas == sorted(kappas, reverse=True)


def test_one_order_of_patches_is_nested_across_rates_and_chance_is_not(found: Analysis) -> None:
    nested, chance = (line(found, "in common between rates", reducer=name) for name in ("top", "random"))
    assert nested["rate"].value == 0.8 and nested["other rate"].value == 0.5
    assert nested["nested mean"].value == 1 and nested["kappa mean"].value == 1
    assert chance["nested mean"].value == pytest.approx(chance["nested by chance"].value, abs=0.05)


def test_seeds_that_keep_the_same_agree_and_random_ones_do_not(found: Analysis) -> None:
    same, chance = (
        line(found, "in common between seeds", reducer=name, rate=0.5) for name in ("top", "random")
    )
    assert same["kappa mean"].value == 1 and same["pairs of seeds"].value == 1
    assert chance["kappa 95 % slides"].value[0] < 0 < chance["kappa 95 % slides"].value[1]


def test_rates_of_one_model_and_of_one_model_each_are_not_mixed() -> None:
    def at(rate: float, trained_at: float, reducer: str = "cropr") -> Row:
        named = ("c", "d", "e", reducer, "geometric", "t", "r", "fp32", trained_at != rate, trained_at, rate)
        return Row(Setting(*named), (), ())

    own = [at(0.5, 0.5), at(0.9, 0.9)]
    moved = [at(0.5, 0.9), at(0.7, 0.9)]
    found = {
        (pair.first.setting, pair.second.setting) for pair in pairs([*own, *moved]) if pair.kind == "rates"
    }
    rates = {((a.trained_at, a.rate), (b.trained_at, b.rate)) for a, b in found}
    assert rates == {
        ((0.9, 0.9), (0.5, 0.5)),
        ((0.9, 0.9), (0.9, 0.5)),
        ((0.9, 0.9), (0.9, 0.7)),
        ((0.9, 0.7), (0.9, 0.5)),
    }
    assert [pair.kind for pair in pairs([at(0.5, 0.5), at(0.5, 0.5, "tome"), at(0.5, 0.9, "x")])] == [
        "reducers"
    ]


# --- pooling and flips ------------------------------------------------------------------------------------


def test_slides_are_averaged_over_seeds_before_they_are_averaged_and_undefined_ones_are_left_out() -> None:
    slides = pd.DataFrame(
        {
            "slide_id": ["x", "x", "y", "z"],
            "patient": ["p", "p", "q", "r"],
            "seed": [0, 1, 0, 0],
            "v": [0.0, 1.0, 0.25, np.nan],
        }
    )
    one = pooled([Quantity("v", 0, 9)], slides)["v"]
    assert one.metric.value == pytest.approx((0.5 + 0.25) / 2) and one.metric.n == 2
    assert one.spread == pytest.approx(np.std([0.125, 1.0], ddof=1))
    half = 1.959964 * clustered_error(np.array([0.5, 0.25]), ["p", "q"])
    assert (one.metric.low, one.metric.high) == pytest.approx((0.375 - half, 0.375 + half))
    assert pooled([Quantity("v"), Quantity("w")], slides[slides["slide_id"] == "z"]) == {}


def test_the_spread_of_a_ratio_divides_means_over_the_same_slides() -> None:
    """Slide y has no lesion: what is kept of it is no part of the enrichment, of no seed."""
    slides = pd.DataFrame(
        {
            "slide_id": ["x", "x", "y", "y"],
            "patient": ["p", "p", "q", "q"],
            "seed": [0, 1, 0, 1],
            "recall": [0.4, 0.8, np.nan, np.nan],
            "share": [0.2, 0.2, 0.9, 0.1],
        }
    )
    one = pooled([Quantity("recall", 0, 9, over="share")], slides)["recall"]
    assert one.metric.value == pytest.approx(0.6 / 0.2) and one.metric.n == 1
    assert one.spread == pytest.approx(np.std([2.0, 4.0], ddof=1))


def test_flips_are_against_the_whole_slide_of_the_same_seed(found: Analysis) -> None:
    one = line(found, "flips of linear-probe", reducer="oracle", rate=0.8)
    # wrong on 1 5 6 7 against 0 1 (seed 0) and 0 1 2 (seed 1): flips 0 5 6 7, and 0 2 5 6 7
    assert one["flips mean"].value == pytest.approx((4 + 5) / 2 / 24)
    assert one["lost mean"].value == pytest.approx(3 / 24)
    assert one["gained mean"].value == pytest.approx((1 + 2) / 2 / 24)
    between = line(found, "flips of linear-probe", reducer="none")
    assert between["flips mean"].value == pytest.approx(1 / 24) and between["seeds"].value == 2


def test_seeds_against_each_other_are_counted_as_seeds_and_neither_loses(tmp_path: Path) -> None:
    out = Store(tmp_path)
    out.prepare()
    for seed in range(4):
        write(out, "none", 0.0, seed, made(top, 0.0, seed), wrong=tuple(range(seed)))
    (one,) = lines(analyse(out, out.scan().records.values()), "flips of linear-probe")
    assert one["flips mean"].value == pytest.approx(np.mean([1, 2, 3, 1, 2, 1]) / 24)
    assert one["seeds"].value == 4
    assert not {"flips ± seeds", "lost mean", "gained mean"} & set(one)


def test_predictions_that_repeat_a_slide_are_refused_and_not_multiplied(store: Store) -> None:
    every = rows(store.scan().records.values())
    row = next(row for row in every if row.setting.reducer == "top")

    def twice(path: str) -> pd.DataFrame:
        return pd.concat([pd.read_parquet(store.out / path)] * 2)

    with pytest.raises(pd.errors.MergeError):
        flips(row, every, "linear-probe", twice)


# --- what cannot be had -----------------------------------------------------------------------------------


def test_without_the_cohort_the_other_analyses_go_on(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(name: str) -> None:
        raise CohortError(f"no cohort is called {name!r}")

    monkeypatch.setattr(places, "open_cohort", gone)
    analysis = analyse(store, store.scan().records.values())
    one = line(analysis, "what is kept", reducer="top", rate=0.8)
    assert "mean depth mean" in one and "raster bias mean" in one
    assert not any(name.startswith(("coverage", "lesion", "reach", "pieces")) for name in one)
    assert sum("no cohort is called 'digits'" in note for note in analysis.tables[0].notes) == 1
    assert len(lines(analysis, "in common between rates")) == 4


def test_coordinates_of_other_data_are_not_used(tmp_path: Path) -> None:
    other = Store(tmp_path)
    other.prepare()
    write(other, "top", 0.8, 0, made(top, 0.8, 0), fingerprint="other")
    analysis = analyse(other, other.scan().records.values())
    assert any("digits has changed since the sweep" in note for note in analysis.tables[0].notes)
    assert "coverage" not in analysis.slides
    assert any(note.startswith("1 seed:") for note in analysis.tables[0].notes)


def test_tokens_that_leave_by_score_have_no_reach_from_kept_sets(tmp_path: Path) -> None:
    out = Store(tmp_path)
    out.prepare()
    for reducer in ("top", "top:order=score"):
        write(out, reducer, 0.8, 0, made(top, 0.8, 0))
    analysis = analyse(out, out.scan().records.values())
    plain, by_score = lines(analysis, "what is kept")
    assert plain["reach mean"].value == 1 and by_score["reach mean"].text == ""
    assert any(note.startswith("no reach of top:order=score") for note in analysis.tables[0].notes)


def test_cells_without_kept_sets_and_damaged_files_are_named_and_the_others_go_on(tmp_path: Path) -> None:
    out = Store(tmp_path)
    out.prepare()
    _, bad, old = (write(out, "top", rate, 0, made(top, rate, 0)) for rate in (0.5, 0.8, 0.9))
    (tmp_path / "kept" / f"{bad.key}.npz").write_bytes(b"PK\x03\x04 but no more")
    (tmp_path / "kept" / f"{old.key}.npz").unlink()
    analysis = analyse(out, out.scan().records.values())
    notes = " ".join(analysis.tables[0].notes)
    assert f"{bad.key}.npz" in notes and "2 of 3 cells left no kept sets" in notes
    assert [each["rate"].value for each in lines(analysis, "what is kept")] == [0.5]
    for path in (tmp_path / "kept").iterdir():
        path.unlink()
    for path in (tmp_path / "predictions").iterdir():
        path.unlink()
    with pytest.raises(RecordError, match="nothing to analyse: 3 of 3 cells left no kept sets"):
        analyse(out, out.scan().records.values())


def test_what_is_missing_of_a_cohort_without_tables_is_said_beside_another(tmp_path: Path) -> None:
    out = Store(tmp_path)
    out.prepare()
    write(out, "top", 0.8, 0, made(top, 0.8, 0))
    old = write(out, "top", 0.8, 0, made(top, 0.8, 0), fingerprint="other")
    (tmp_path / "kept" / f"{old.key}.npz").unlink()
    (tmp_path / old.tasks["linear-probe"].predictions).unlink()
    notes = analyse(out, out.scan().records.values()).tables[0].notes
    said = "digits (data other): 1 of 1 cells left no kept sets; slimbench sweep --rerun all writes them"
    assert notes.count(said) == 1


def test_what_comes_back_before_the_last_block_is_not_said_to_be_missing_from_it(tmp_path: Path) -> None:
    out = Store(tmp_path)
    out.prepare()
    record = write(out, "top", 0.8, 0, made(top, 0.8, 0))
    assert record.kept is not None
    tokens = (*record.kept.tokens_per_block[:-1], record.kept.tokens_per_block[0])
    kept = record.kept.model_copy(update={"tokens_per_block": tokens})
    analysis = analyse(out, [record.model_copy(update={"kept": kept})])
    (one,) = lines(analysis, "block by block")
    assert "patches that enter block 5" in one and "lesion that enters block 5" in one
    assert not any(name.endswith("block 6") for name in one)
    assert sum(note.startswith("no last block of slim-tiny") for note in analysis.tables[0].notes) == 1


def test_only_the_reducers_that_were_asked_for_are_shown(store: Store) -> None:
    analysis = analyse(store, store.scan().records.values(), ["top", "random"])
    assert {each["reducer"].text for each in lines(analysis, "what is kept")} == {"top", "random"}
    assert len(lines(analysis, "in common between reducers")) == 2
    assert lines(analysis, "flips of linear-probe")
    with pytest.raises(UsageError, match="no record has the reducer 'tome'; they have none, oracle"):
        analyse(store, store.scan().records.values(), ["tome"])


# --- the command ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["rich", "md", "csv", "latex"])
def test_the_command_writes_tables_and_the_values_of_every_slide(
    form: str, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["analyse", str(store.out), "--reducer", "top", "--reducer", "slots", "--format", form]) == 0
    out, err = capsys.readouterr()
    assert "coverage" in out and "its tokens stand at no patch" in out
    assert err == f"values of every slide: {store.out}/analysis/slides.csv\n"
    written = pd.read_csv(store.out / "analysis" / "slides.csv")
    assert len(written) == (2 * 2 + 2) * len(SLIDES) and {"top", "slots"} == set(written["reducer"])


def test_a_mistake_is_one_line(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in (
        (["analyse", str(tmp_path / "nowhere")], "is no results folder"),
        (["analyse", str(store.out), "--reducer", "tome"], "no record has the reducer 'tome'"),
        (["analyse", str(store.out), "--format", "pdf"], "no format is called 'pdf'"),
    ):
        assert run(words) == 1
        out, err = capsys.readouterr()
        assert out == "" and message in err and err.count("\n") == 1
