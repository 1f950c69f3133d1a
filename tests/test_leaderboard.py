"""What a leaderboard promises: averages that are averages, marks that hold, and nobody's words obeyed."""

import csv
import html.parser
import io
import itertools
import re
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from scipy import stats

from slimbench.errors import UsageError
from slimbench.leaderboard.board import leaderboard
from slimbench.leaderboard.compare import Comparison, probed
from slimbench.leaderboard.escape import csv_text, latex, markdown, one_line, plain
from slimbench.leaderboard.explain import explain
from slimbench.leaderboard.html import to_html
from slimbench.leaderboard.pareto import ticks
from slimbench.leaderboard.published import published, sources
from slimbench.leaderboard.render import print_tables, to_csv, to_latex, to_markdown
from slimbench.leaderboard.rows import mean_pool, rows, tasks_of, unpruned
from slimbench.leaderboard.score import doubts, score
from slimbench.leaderboard.score import table as score_table
from slimbench.leaderboard.table import Table, number
from slimbench.leaderboard.tidy import write_tidy
from slimbench.runs.record import Cell, Failure, Identity, Kept, MetricValue, Record, TaskOutcome
from slimbench.statistics.paired import compare

CLASSES = ["a", "b", "c", "d"]
START = datetime(2026, 1, 1, tzinfo=UTC)
HOSTILE = '</script><img src=x onerror=alert(1)>"onx=\x1b]0;evil\x07\x1b[31m=cmd()|a [/foo] 50%_$&{}\\#~^`*'


def record(
    reducer: str = "cropr",
    rate: float = 0.9,
    seed: int = 0,
    *,
    encoder: str = "slim-tiny",
    trained_at: float | None = None,
    accuracy: float | None = 0.8,
    flops: float = 1e8,
    failure: Failure | None = None,
    predictions: str | None = None,
    supervised: bool = False,
    minutes: int = 0,
    tasks: tuple[str, ...] = ("linear-probe", "efficiency"),
    **changes,
) -> Record:
    cell = Cell(
        encoder=encoder,
        reducer=reducer,
        rate=rate,
        trained_at=rate if trained_at is None else trained_at,
        seed=seed,
        cohort="c",
        text="tfidf",
        recipe="tiny",
        tasks=tasks,
    )
    identity = Identity(cohort=changes.pop("data", "data1"), code={"reducer": "1"})
    outcomes = {
        "linear-probe": TaskOutcome(
            metrics=(
                MetricValue(name="accuracy", value=accuracy, n=100, low=0.7, high=0.9),
                MetricValue(name="balanced_accuracy", value=accuracy, n=100, low=0.6, high=0.85),
            ),
            primary="balanced_accuracy",
            facts={"classes": CLASSES, "label_supervised": supervised},
            predictions=predictions,
        ),
        "efficiency": TaskOutcome(
            metrics=(
                MetricValue(name="flops", value=flops, n=100),
                MetricValue(name="latency_median_ms", value=flops / 1e7, n=48),
            ),
            primary="flops",
        ),
    }
    return Record(
        key=identity.key(cell),
        cell=cell,
        identity=identity,
        cohort_name=changes.pop("cohort_name", "cohort"),
        status="failed" if failure else "ok",
        failure=failure,
        kept=None if failure else Kept(tokens_per_block=(10.0, 1.0), share=1 - rate, single_token=0.0, n=100),
        tasks={} if failure else {task: outcomes[task] for task in tasks if task in outcomes},
        provenance={"source": "s"} | changes.pop("provenance", {}),
        started=START + timedelta(minutes=minutes),
        ended=START + timedelta(minutes=minutes + 1),
        seconds=60.0,
    )


BASE = (
    record("none", 0.0, encoder="mean-pool", accuracy=0.7, flops=0.0),
    record("none", 0.0, accuracy=0.8, flops=2e8),
)


def cells_of(table: Table) -> list[dict[str, str]]:
    """Each row as {group and title: text}."""
    names = [f"{column.group} {column.title}".strip() for column in table.columns]
    return [dict(zip(names, (cell.text for cell in row), strict=True)) for row in table.rows]


def test_seeds_are_averaged_and_their_spread_stands_beside_the_interval_over_slides():
    values = [0.8, 0.9, 0.85]
    (row,) = rows([record(seed=seed, accuracy=value) for seed, value in enumerate(values)])
    value = row.value("linear-probe", "balanced_accuracy")
    assert value.mean == pytest.approx(np.mean(values)) and value.spread == pytest.approx(
        np.std(values, ddof=1)
    )
    assert (value.low, value.high, value.n, value.seeds) == (pytest.approx(0.6), pytest.approx(0.85), 100, 3)
    assert row.kept == pytest.approx(0.1)
    shown = cells_of(leaderboard([record(seed=s, accuracy=v) for s, v in enumerate(values)])[0])[0]
    assert shown["linear-probe balanced accuracy"] == "0.850" and shown["linear-probe ± seeds"] == "0.050"
    assert shown["linear-probe 95 % slides"] == "0.600 to 0.850" and shown["linear-probe n"] == "100"


def test_one_seed_has_no_spread_and_no_verdict():
    (row,) = rows([record()])
    assert row.value("linear-probe", "balanced_accuracy").spread is None
    (table,) = leaderboard([record()])
    assert "1 seed: no verdict" in cells_of(table)[0]["marks"]
    assert any(note.startswith("1 seed: no verdict:") for note in table.notes)
    (table,) = leaderboard([record(), record(seed=1)])
    assert "1 seed" not in cells_of(table)[0].get("marks", "")


def test_an_undefined_metric_is_said_and_not_averaged():
    (row,) = rows([record(seed=0, accuracy=None), record(seed=1, accuracy=0.5)])
    assert row.value("linear-probe", "balanced_accuracy").mean == 0.5
    (table,) = leaderboard([record(accuracy=None)])
    assert cells_of(table)[0]["linear-probe balanced accuracy"] == "undefined"


def test_rows_come_in_one_order_and_settings_that_differ_are_different_rows():
    records = [record("tome", 0.9), record("cropr", 0.9), record("cropr", 0.5), *BASE[::-1]]
    found = [(row.setting.encoder, row.setting.reducer, row.setting.rate) for row in rows(records)]
    assert found == [
        ("mean-pool", "none", 0.0),
        ("slim-tiny", "none", 0.0),
        ("slim-tiny", "cropr", 0.5),
        ("slim-tiny", "cropr", 0.9),
        ("slim-tiny", "tome", 0.9),
    ]


def test_one_model_at_many_rates_and_one_model_per_rate_never_share_a_table():
    records = [*BASE, record("cropr", 0.9), record("cropr", 0.7, trained_at=0.9, accuracy=0.6)]
    own, moved = leaderboard(records)
    assert [line["rate"] for line in cells_of(own)] == ["0", "0", "0.9"]
    assert "one model" in moved.title
    assert [(line["trained at"], line["rate"]) for line in cells_of(moved)] == [
        ("0", "0"),
        ("0", "0"),
        ("0.9", "0.9"),
        ("0.9", "0.7"),
    ]


def test_results_on_other_data_under_the_same_name_are_another_table():
    one, two = leaderboard([record(data="data1"), record(data="data2", accuracy=0.1)])
    assert "data1" in one.title and "data2" in two.title and len(one.rows) == len(two.rows) == 1


def test_a_row_below_mean_pool_is_marked():
    marks = {
        line["reducer"]: line.get("marks", "")
        for line in cells_of(
            leaderboard([*BASE, record("bad", accuracy=0.69), record("good", accuracy=0.71)])[0]
        )
    }
    assert "below mean-pool" in marks["bad"] and "below mean-pool" not in marks["good"] + marks["none"]


def test_label_supervised_captions_are_marked():
    (table,) = leaderboard([record(supervised=True)])
    assert "label-supervised" in cells_of(table)[0]["marks"]
    assert any("captions it was trained on contain the labels" in note for note in table.notes)
    assert "label-supervised" not in cells_of(leaderboard([record()])[0])[0]["marks"]


def test_seeds_that_ran_different_code_are_marked():
    mixed = [record(seed=0), record(seed=1, provenance={"source": "other"})]
    assert "mixed code" in cells_of(leaderboard(mixed)[0])[0]["marks"]


def test_the_last_record_of_a_seed_stands_and_brings_the_tasks_of_earlier_ones():
    old = record(accuracy=0.1)
    new = record(accuracy=0.9, minutes=5, tasks=("linear-probe",))
    (row,) = rows([new, old])
    assert row.value("linear-probe", "balanced_accuracy").mean == 0.9
    assert row.value("efficiency", "flops").mean == 1e8
    other = old.model_copy(update={"identity": Identity(cohort="data1", code={"reducer": "2"})})
    (row,) = rows([new, other])
    assert row.value("efficiency", "flops") is None  # measured on another training


def test_failed_cells_are_shown_as_failed_and_a_later_success_takes_their_place():
    boom = Failure(kind="oom", type="MemoryError", message="17,182 tokens")
    table, failed = leaderboard([record(seed=0), record(seed=1, failure=boom)])
    assert "failed: 1 of 2 (oom)" in cells_of(table)[0]["marks"] and cells_of(table)[0]["seeds"] == "1"
    assert cells_of(failed)[0]["why"] == "MemoryError: 17,182 tokens"
    (table,) = leaderboard([record(seed=1, failure=boom), record(seed=1, minutes=9)])
    assert "failed" not in cells_of(table)[0]["marks"]
    table, failed = leaderboard([record(failure=boom)])
    assert cells_of(table)[0]["seeds"] == "0" and len(failed.rows) == 1


def test_costs_are_read_against_the_unpruned_encoder():
    line = cells_of(leaderboard([*BASE, record(flops=8e7)])[0])[-1]
    assert line["efficiency FLOPs"] == "80 M" and line["efficiency of unpruned"] == "40.0 %"


def test_a_skipped_task_says_so_where_another_row_has_it():
    skipped = record("random").model_copy(update={"tasks": {"linear-probe": TaskOutcome(skipped="no text")}})
    lines = {line["reducer"]: line for line in cells_of(leaderboard([record(), skipped])[0])}
    assert lines["random"]["linear-probe balanced accuracy"] == "skipped"


def test_all_metrics_of_a_task_can_be_asked_for_and_an_unknown_one_is_refused():
    (table,) = leaderboard([record()], tasks=["linear-probe"])
    titles = [column.title for column in table.columns if column.group == "linear-probe"]
    assert "accuracy" in titles and "balanced accuracy" in titles
    assert all(column.group != "efficiency" for column in table.columns)
    with pytest.raises(UsageError, match="no record has the task 'retrieval'; they have linear-probe"):
        leaderboard([record()], tasks=["retrieval"])


def test_the_row_that_a_row_is_read_against_is_of_its_own_training():
    other = BASE[1].model_copy(update={"cell": BASE[1].cell.model_copy(update={"recipe": "paper"})})
    found = rows([*BASE, other, record()])
    mine = next(row for row in found if row.setting.reducer == "cropr")
    assert unpruned(mine, found).setting.recipe == "tiny"
    assert mean_pool(mine, found).setting.is_baseline
    assert list(tasks_of(found)) == ["linear-probe", "efficiency"]


# --- comparisons ----------------------------------------------------------------------------------------


class Study:
    """Made predictions of several systems and seeds on the same 200 slides."""

    def __init__(self, seed: int = 0, n: int = 200) -> None:
        self.draw = np.random.default_rng(seed)
        self.truth = self.draw.integers(0, 4, n)
        self.hard = self.draw.normal(size=n)  # what makes a slide hard for every system
        self.tables: dict[str, pd.DataFrame] = {}

    def record(self, reducer: str, seed: int, skill: float, rate: float = 0.9) -> Record:
        own = skill + 1.2 * self.hard + self.draw.normal(size=len(self.truth))
        logits = self.draw.normal(size=(len(self.truth), 4))
        logits[np.arange(len(self.truth)), self.truth] += own
        log_p = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
        path = f"{reducer}-{rate}-{seed}"
        ids = [f"s{number}" for number in range(len(self.truth))]
        self.tables[path] = pd.DataFrame(
            {
                "slide_id": ids,
                "patient": ids,
                "label": [CLASSES[k] for k in self.truth],
                "predicted": [CLASSES[k] for k in log_p.argmax(1)],
                "log_probabilities": list(log_p.astype(np.float32)),
            }
        )
        accuracy = float((log_p.argmax(1) == self.truth).mean())
        return record(reducer, rate, seed, accuracy=accuracy, predictions=path)

    def read(self, path: str) -> pd.DataFrame:
        if path not in self.tables:
            raise FileNotFoundError(path)
        return self.tables[path]

    def comparison(self, records: list[Record], metric: str = "balanced_accuracy") -> Comparison:
        return Comparison(rows(records), "linear-probe", metric, self.read)


def test_a_difference_is_the_mean_over_seeds_and_its_interval_holds_slides_and_seeds():
    study = Study()
    records = [study.record("none", s, 2.0, 0.0) for s in range(3)]
    records += [study.record("cropr", s, 2.0 + 0.5 * s) for s in range(3)]
    comparison = study.comparison(records)
    (found,) = comparison.against({1: comparison.rows[0]}).values()
    pairs = [
        compare(study.tables[f"cropr-0.9-{s}"], study.tables[f"none-0.0-{s}"], CLASSES, "balanced_accuracy")
        for s in range(3)
    ]
    gaps = [pair.difference for pair in pairs]
    slides = np.mean([(pair.high - pair.low) / 2 for pair in pairs])
    seeds = stats.t.ppf(0.975, 2) * np.std(gaps, ddof=1) / np.sqrt(3)
    assert found.mean == pytest.approx(np.mean(gaps)) and found.seeds == 3 and found.n == 200
    assert found.high - found.mean == pytest.approx(np.hypot(slides, seeds))
    assert (found.p < 0.05) == (found.low > 0 or found.high < 0)


def test_one_seed_gives_a_difference_and_no_verdict():
    study = Study()
    records = [study.record("none", 0, 1.0, 0.0), study.record("cropr", 0, 5.0)]
    comparison = study.comparison(records)
    (found,) = comparison.against({1: comparison.rows[0]}).values()
    assert found.mean > 0.2 and found.p is None and found.verdict == "1 seed: no verdict"
    assert comparison.within_noise == {}
    line = cells_of(leaderboard(records, read=study.read)[0])[1]
    assert line["linear-probe against unpruned"] == "1 seed: no verdict"


def test_a_large_difference_is_told_and_p_values_are_adjusted_over_the_table():
    study = Study()
    skills = {"none": 1.0, "good": 4.0, "same": 1.0}
    records = [
        study.record(name, s, skill, 0.0 if name == "none" else 0.9)
        for name, skill in skills.items()
        for s in range(3)
    ]
    comparison = study.comparison(records)
    places = {row.setting.reducer: place for place, row in enumerate(comparison.rows)}
    reference = comparison.rows[places["none"]]
    both = comparison.against({place: reference for place in places.values()})
    assert both[places["good"]].verdict == "better" and both[places["same"]].verdict == "not told apart"
    alone = comparison.against({places["good"]: reference})
    assert both[places["good"]].p == pytest.approx(2 * alone[places["good"]].p)
    assert places["none"] not in both  # a row is not compared with itself
    noise = comparison.within_noise
    assert noise[places["good"]] and not noise[places["none"]] and not noise[places["same"]]
    ranks = comparison.ranks
    assert ranks[places["good"]] == (1.0, 1.0) and ranks[places["same"]][1] >= 2.0


def test_the_table_carries_differences_ranks_and_what_the_test_set_can_show():
    study = Study()
    records = [study.record("none", s, 1.0, 0.0) for s in range(3)]
    records += [
        study.record(name, s, skill) for name, skill in (("cropr", 4.0), ("random", 1.0)) for s in range(3)
    ]
    (table,) = leaderboard(records, read=study.read)
    lines = {line["reducer"]: line for line in cells_of(table)}
    assert lines["cropr"]["linear-probe Δ unpruned"].startswith("+0.")
    assert lines["cropr"]["linear-probe against unpruned"].startswith("better (p ")
    assert lines["cropr"]["linear-probe against random"].startswith("better (p ")
    assert (
        lines["cropr"]["linear-probe rank"] == "1 to 1"
        and "within noise of the best" in lines["cropr"]["marks"]
    )
    assert lines["random"]["linear-probe against unpruned"].startswith("not told apart")
    assert lines["none"]["linear-probe Δ unpruned"] == ""
    assert any(
        re.search(r"200 test slides show, with 80 % power.* 0\.\d{3} or more", note) for note in table.notes
    )


def test_rows_without_predictions_or_on_other_slides_are_shown_without_a_difference():
    study, other = Study(), Study(1, n=150)
    records = [study.record("none", s, 1.0, 0.0) for s in range(2)]
    records += [other.record("cropr", s, 4.0) for s in range(2)]
    study.tables |= other.tables
    records += [record("gone", seed=s, predictions=f"gone-{s}") for s in range(2)]
    lines = {line["reducer"]: line for line in cells_of(leaderboard(records, read=study.read)[0])}
    assert len(lines) == 3 and all("linear-probe Δ unpruned" not in line for line in lines.values())


@pytest.mark.slow
def test_few_shots_have_no_class_per_slide_to_compare_and_do_not_hide_the_probe_behind_them():
    study = Study()
    records = [
        study.record(name, s, 2.0, 0.0 if name == "none" else 0.9)
        for name in ("none", "cropr")
        for s in (0, 1)
    ]
    few = []
    for each in records:
        path = each.tasks["linear-probe"].predictions
        drawn = study.tables[path].drop(columns="log_probabilities")
        study.tables[f"{path}-few"] = pd.concat([drawn.assign(shots=n, draw=0) for n in (1, 16)])
        outcome = TaskOutcome(
            metrics=(MetricValue(name="balanced_accuracy_16_shot", value=0.5, n=200),),
            primary="balanced_accuracy_16_shot",
            facts={"classes": CLASSES},
            predictions=f"{path}-few",
        )
        cell = each.cell.model_copy(update={"tasks": ("few-shot", *each.cell.tasks)})
        few.append(each.model_copy(update={"cell": cell, "tasks": {"few-shot": outcome, **each.tasks}}))
    assert probed(rows(few)) == ["linear-probe"]
    (table,) = leaderboard(few, read=study.read)
    assert "linear-probe against unpruned" in cells_of(table)[1]
    (alone,) = leaderboard(few, tasks=["few-shot"], read=study.read)
    assert cells_of(alone)[1]["few-shot balanced accuracy 16 shot"] == "0.500"


def test_text_only_rows_are_not_called_collapsed():
    said = {"encoder": {"collapse": {"collapsed": True}}}
    (marked,) = cells_of(leaderboard([record(provenance=said)])[0])
    assert "collapsed" in marked["marks"]
    said["encoder"]["without_report"] = {"test": 0}
    (marked,) = cells_of(leaderboard([record(provenance=said)])[0])
    assert "text only" in marked["marks"] and "collapsed" not in marked["marks"]


def test_equal_rows_are_told_apart_in_no_more_than_one_study_of_twenty():
    """Training runs of equal expected skill, three seeds each, 100 slides: the coverage of the interval."""
    wrong = 0
    for draw in range(100):
        study = Study(draw, n=100)
        skill = {name: study.draw.normal(2.0, 0.3, 3) for name in ("none", "cropr")}
        records = [
            study.record(name, s, skill[name][s], 0.9 * (name == "cropr")) for name in skill for s in range(3)
        ]
        comparison = study.comparison(records)
        (found,) = comparison.against({1: comparison.rows[0]}).values()
        wrong += found.verdict != "not told apart"
    assert wrong <= 5


def test_a_study_of_two_cells_names_what_differs_before_their_numbers():
    study = Study()
    one, other = study.record("cropr", 0, 4.0), study.record("none", 0, 1.0, 0.0)
    other = other.model_copy(update={"provenance": {"source": "s", "machine": {"cores": 64}}})
    origin, numbers = explain(one, other, study.read)
    differing = {line["what differs"]: (line[one.key], line[other.key]) for line in cells_of(origin)}
    assert differing["cell reducer"] == ("cropr", "none") and differing["provenance machine cores"] == (
        "",
        "64",
    )
    assert "provenance source" not in differing and "cell encoder" not in differing
    lines = {line["metric"]: line for line in cells_of(numbers)}
    pair = compare(study.read("cropr-0.9-0"), study.read("none-0.0-0"), CLASSES, "accuracy")
    assert lines["accuracy"]["Δ"] == f"{pair.difference:+.3f}" and lines["accuracy"]["p"] == f"{pair.p:.2g}"
    assert "no verdict" in numbers.notes[0]
    assert cells_of(explain(one, one, study.read)[0]) == []


def test_scores_come_out_of_the_predictions_and_a_false_claim_is_found():
    study = Study()
    honest = study.record("cropr", 0, 2.0)
    measured = {each.found.name: each for each in score([honest], study.read)}
    assert not measured["accuracy"].differs and measured["accuracy"].found.low is not None
    claimed = study.record("tome", 0, 2.0)
    outcome = claimed.tasks["linear-probe"]
    better = [metric.model_copy(update={"value": 0.99}) for metric in outcome.metrics]
    tasks = {"linear-probe": outcome.model_copy(update={"metrics": tuple(better)})}
    claimed = claimed.model_copy(update={"tasks": tasks})
    assert all(each.differs for each in score([claimed], study.read))
    assert {line["record"] for line in cells_of(score_table(list(score([honest, claimed], study.read))))} == {
        "same",
        "differs",
    }
    with pytest.raises(FileNotFoundError):
        list(score([record(predictions="gone")], study.read))


def test_the_published_numbers_tell_the_size_of_their_test_sets_and_the_kind_of_their_kappas():
    messages = [f"{finding.where}: {finding.message}" for finding in doubts([], sources())]
    assert any("TCGA" in text and "k/63" in text and "one slide is 0.0159" in text for text in messages)
    assert any("EBRAINS" in text and "k/232" in text for text in messages)
    assert any(
        "kappa_linear 0.927 is above the accuracy 0.905: it cannot be unweighted" in text for text in messages
    )


def test_numbers_that_cannot_be_are_found_in_our_own_records():
    wrong = record(accuracy=1.2)
    assert any("outside its range" in finding.message for finding in doubts([wrong], []))
    outcome = record(accuracy=0.805).tasks["linear-probe"]
    counted = outcome.model_copy(update={"facts": outcome.facts | {"intervals": {}}})
    odd = record().model_copy(update={"tasks": {"linear-probe": counted}})
    assert any("no multiple of 1/100" in finding.message for finding in doubts([odd], []))
    assert doubts([record(accuracy=0.81)], []) == []


# --- formats --------------------------------------------------------------------------------------------


def hostile_tables() -> tuple[list[Record], tuple[Table, ...]]:
    boom = Failure(kind="error", type="Err", message=HOSTILE)
    records = [
        *BASE,
        record(HOSTILE, cohort_name=HOSTILE),
        record(HOSTILE, 0.5, failure=boom, cohort_name=HOSTILE),
    ]
    return records, (*leaderboard(records), *published())


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.9344, "0.934"),
        (32.021, "32.0"),
        (1.2e12, "1.2 T"),
        (0.0, "0"),
        (-0.5, "-0.500"),
        (12345.0, "12.3 k"),
        (None, ""),
    ],
)
def test_numbers_read_as_a_person_writes_them(value, text):
    assert number(value).text == text and number(value).value == value


def test_terminal_output_carries_no_control_of_a_stranger_and_keeps_their_brackets():
    out = io.StringIO()
    print_tables(hostile_tables()[1], Console(file=out, width=600))
    text = out.getvalue()
    assert "\x1b" not in text and "\x07" not in text and "[/foo]" in text and "evil" not in text


def test_a_narrow_terminal_drops_columns_and_says_so():
    out = io.StringIO()
    print_tables(leaderboard([*BASE, record(), record(seed=1)]), Console(file=out, width=80))
    assert "columns need a wider window" in out.getvalue()
    assert max(len(line.rstrip()) for line in out.getvalue().splitlines() if line[:1] in "│┃") <= 80
    assert "balanced" in out.getvalue() and "FLOPs" in out.getvalue()


def test_markdown_tables_keep_their_columns_whatever_the_words():
    lines = to_markdown(hostile_tables()[1]).splitlines()
    heads = [
        number
        for number, line in enumerate(lines)
        if line.startswith("| ") and set(lines[number + 1]) <= set("|-: ")
    ]
    assert len(heads) >= 4
    for head in heads:
        width = len(re.findall(r"(?<!\\)\|", lines[head]))
        for line in lines[head + 1 :]:
            if not line.startswith("|"):
                break
            assert len(re.findall(r"(?<!\\)\|", line)) == width
    assert not re.search(r"(?<!\\)<\w", "\n".join(lines))


def test_latex_keeps_balanced_braces_and_escapes_what_it_would_obey():
    text = to_latex(hostile_tables()[1])
    body = re.sub(r"\\[{}%$&#_]", "", text)
    assert body.count("{") == body.count("}")
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") >= 4
    assert r"\toprule" in text and r"\bottomrule" in text and r"\cmidrule" in text
    for table in re.findall(r"\\midrule\n(.*?)\\bottomrule", text, re.DOTALL):
        counts = {len(re.findall(r"(?<!\\)&", line)) for line in table.strip().splitlines()}
        assert len(counts) == 1
    assert not re.search(r"(?<!\\)[#^]", text) and latex("a_b\\c") == r"a\_b\textbackslash{}c"


def test_csv_holds_full_precision_and_no_formula():
    value = 0.123456789012345
    lines = list(
        csv.DictReader(io.StringIO(to_csv(leaderboard([record(accuracy=value), record("=cmd()", 0.5)]))))
    )
    assert (
        float(lines[1]["linear-probe balanced accuracy"]) == value
        or float(lines[0]["linear-probe balanced accuracy"]) == value
    )
    assert {line["reducer"] for line in lines} == {"cropr", "'=cmd()"}
    assert (
        float(lines[0]["linear-probe 95 % slides low"]) == 0.6
        and float(lines[0]["linear-probe 95 % slides high"]) == 0.85
    )


def test_the_tidy_export_has_one_number_a_line():
    out = io.StringIO()
    write_tidy([record(accuracy=0.25), record("a,b", 0.5, accuracy=None)], out)
    lines = list(csv.DictReader(io.StringIO(out.getvalue())))
    assert list(lines[0])[:10] == [
        "encoder",
        "reducer",
        "rate",
        "seed",
        "cohort",
        "task",
        "metric",
        "value",
        "n",
        "cell",
    ]
    first = lines[0]
    assert (first["metric"], float(first["value"]), first["n"], float(first["low"])) == (
        "accuracy",
        0.25,
        "100",
        0.7,
    )
    assert first["cell"] == record().key and len(lines) == 8
    undefined = [line for line in lines if line["reducer"] == "a,b" and line["metric"] == "accuracy"]
    assert undefined[0]["value"] == ""


@pytest.mark.parametrize("escape", [plain, one_line, markdown, latex, csv_text])
def test_no_escape_lets_controls_through(escape: Callable[[str], str]):
    text = escape("a\x1b]0;title\x07b\x1b[31mc\x00\x9b2J\u202ed")
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", text) and "title" not in text


class Page(html.parser.HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def parsed(text: str) -> Page:
    page = Page()
    page.feed(text)
    return page


def test_the_page_takes_no_tag_no_handler_and_no_address_from_a_stranger():
    records, tables = hostile_tables()
    hostile = parsed(to_html(records, tables))
    tame = parsed(to_html([*BASE, record()], leaderboard([*BASE, record()])))
    assert set(hostile.tags) <= set(tame.tags) | {"section"} and "img" not in hostile.tags
    assert hostile.tags.count("script") == hostile.tags.count("style") == 1
    assert not [name for name, _ in hostile.attributes if name.startswith("on") or name in ("src", "href")]
    assert "<img src=x onerror=alert(1)>" in "".join(hostile.text)  # shown as it is


def test_the_page_allows_its_own_script_and_style_and_nothing_else():
    text = to_html(list(BASE), leaderboard(BASE))
    (policy,) = [
        value for name, value in parsed(text).attributes if name == "content" and "default-src" in value
    ]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy and "http" not in policy
    assert "url(" not in text and "@import" not in text and len(text) < 60_000


def test_the_plot_marks_the_rows_that_none_beats_at_their_cost():
    records = [*BASE, record("good", accuracy=0.9, flops=1e8), record("bad", accuracy=0.75, flops=1.5e8)]
    page = to_html(records, leaderboard(records))
    best = re.findall(r'class="point c\d best" data-name="([^"]+)"', page)
    assert len(best) == 4  # mean-pool and `good`, against FLOPs and against latency
    assert {name.split()[1] for name in best} == {"none", "good"}


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.81, 0.97), (3e7, 2.1e8), (0.5, 0.5), (0.0, 0.0)])
def test_ticks_are_round_and_cover_the_values(low, high):
    found = ticks(low, high)
    assert found[0] <= low and found[-1] >= high and 2 <= len(found) <= 8
    assert len({round(b - a, 12) for a, b in itertools.pairwise(found)}) == 1


@pytest.fixture
def browser():
    """A real browser without a network, or the reason why there is none."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    program = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not program or not driver:
        pytest.skip("no chromium with its chromedriver on this machine")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1300,1200"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    made = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield made
    made.quit()


def test_in_a_browser_the_page_sorts_highlights_and_asks_nobody_for_anything(browser, tmp_path: Path):
    records = [
        *BASE,
        record("good", accuracy=0.9),
        record(HOSTILE, 0.5, accuracy=0.2),
        record("bad", accuracy=0.1),
    ]
    path = tmp_path / "page.html"
    path.write_text(to_html(records, (*leaderboard(records), *published())))
    browser.get(path.as_uri())

    def column(title: str) -> list[str]:
        script = """const table = document.querySelector('.measured table');
        const heads = [...table.querySelectorAll('th[scope=col]')];
        const place = heads.findIndex(head => head.textContent === arguments[0]);
        return [...table.tBodies[0].rows].map(row => row.cells[place].textContent)"""
        return browser.execute_script(script, title)

    assert column("balanced accuracy")[:2] == ["0.700", "0.800"]
    button = browser.find_element("xpath", "//section[@class='measured']//button[text()='balanced accuracy']")
    button.click()
    assert column("balanced accuracy") == sorted(column("balanced accuracy"))
    button.click()
    assert column("balanced accuracy") == sorted(column("balanced accuracy"), reverse=True)
    row = browser.find_element("xpath", "//section[@class='measured']//td[text()='good']/..")
    browser.execute_script("arguments[0].dispatchEvent(new MouseEvent('mouseenter'))", row)
    assert len(browser.find_elements("css selector", ".point.lit")) == 2
    assert browser.get_log("browser") == []
    asked = [
        entry["message"]
        for entry in browser.get_log("performance")
        if "Network.requestWillBeSent" in entry["message"]
    ]
    assert all('"url":"file:///' in message for message in asked) and len(asked) == 1
