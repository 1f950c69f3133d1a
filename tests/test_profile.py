"""`slimbench profile`: the row of one subject, the table beside the paper, the command."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch

from slimbench.cli import run
from slimbench.leaderboard.profiles import profile_table, published_flops
from slimbench.leaderboard.render import to_csv
from slimbench.measure.profile import Profile, profile
from slimbench.measure.subject import Subject, expected_seconds, made_slide

TINY = Subject(encoder="slim-tiny", reducer="cropr", rate=0.5, patches=300, dim=24, repeats=2)


@pytest.fixture(scope="module")
def tiny() -> Profile:
    return profile(TINY)


def test_a_profile_says_what_one_slide_costs(tiny: Profile) -> None:
    assert tiny.patches == (300,)
    assert tiny.tokens_per_block == (300, 261, 227, 197, 171, 148)
    assert tiny.stated == tiny.counted == tiny.fvcore == sum(tiny.operations.values())
    assert tiny.padded is not None and tiny.padded > tiny.counted
    fold = 48 * 48  # of key projection and query, once per module
    assert tiny.reducer_flops == sum(2 * (n * 48 + fold) for n in (300, 261, 227, 197, 171))
    assert tiny.passes == 2
    assert tiny.p95_s >= tiny.median_s > 0
    assert 0 < tiny.reducer_share < 1
    assert 0 < tiny.peak_share < 1
    assert tiny.attention_backend.startswith("cpu-flash (")
    assert tiny.reach is not None and len(tiny.reach) == 6
    assert 0.5 < tiny.reach[0] < tiny.reach[1] == 1.0


def test_a_made_slide_is_the_same_every_time_and_stands_on_a_square() -> None:
    slide = made_slide(100, 4)
    assert slide.tokens.x.equal(made_slide(100, 4).tokens.x)
    assert slide.tokens.coords.max() == 9
    assert len(slide.tokens.coords.unique(dim=0)) == 100


def test_a_subject_of_another_size_or_rate_has_another_record() -> None:
    others = [TINY.model_copy(update=change) for change in ({"rate": 0.6}, {"patches": 301}, {"repeats": 3})]
    assert len({TINY.key, *(other.key for other in others)}) == 4


def test_what_a_profile_may_take_grows_with_its_work() -> None:
    few, many = (expected_seconds(TINY.model_copy(update={"patches": n, "rate": 0.0})) for n in (300, 30_000))
    more = expected_seconds(TINY.model_copy(update={"patches": 30_000, "rate": 0.9}))
    assert few < more < many


def papers(tiny: Profile, encoder: str = "slim") -> list[Profile]:
    """Profiles of the paper's slide, as if they had been measured."""

    def made(reducer: str, rate: float, flops: float, core_s: float) -> Profile:
        subject = TINY.model_copy(
            update={"encoder": encoder, "reducer": reducer, "rate": rate, "patches": 17_182, "dim": 768}
        )
        numbers = {"counted": flops, "core_s": core_s, "patches": (17_182,), "pass_bytes": 17_183 * 20 * 1024}
        return tiny.model_copy(update={"subject": subject, **numbers})

    return [
        made("none", 0.0, 2.0e12, 20.0),
        made("cropr", 0.8, 1.0e12, 10.0),
        made("random", 0.8, 0.9e12, 9.0),
    ]


def rows(profiles: list[Profile]) -> list[dict[str, str]]:
    return list(csv.DictReader(to_csv([profile_table(profiles)]).splitlines()))


def test_the_papers_figure_stands_beside_ours_with_its_ratio(tiny: Profile) -> None:
    none, cropr, random = rows(papers(tiny))
    assert float(none["FLOPs paper"]) == 2.32e12
    assert float(cropr["FLOPs paper"]) == 1.20e12
    assert float(cropr["FLOPs ÷ none"]) == 0.5
    assert float(cropr["FLOPs paper ÷ none"]) == pytest.approx(1.20 / 2.32)
    assert float(cropr["FLOPs ours ÷ paper"]) == pytest.approx(1.0 / 1.2)
    assert float(cropr["latency core ÷ none"]) == 0.5
    assert float(cropr["memory KiB/token"]) == 20
    assert random["FLOPs paper"] == ""  # the paper has no such row


def test_other_encoders_and_sizes_are_not_read_against_the_paper(tiny: Profile) -> None:
    assert "FLOPs paper" not in rows(papers(tiny, encoder="gigapath"))[0]
    assert "FLOPs paper" not in rows([tiny])[0]


def test_a_row_over_a_cohort_says_what_it_is_a_mean_of(tiny: Profile) -> None:
    subject = TINY.model_copy(update={"patches": None, "cohort": "digits"})
    notes = profile_table([tiny.model_copy(update={"subject": subject, "patches": (128, 170, 223)})]).notes
    assert any(note.startswith("digits: 3 slides at equal steps of its sizes") for note in notes)
    assert not any("equal steps" in note for note in profile_table([tiny]).notes)


def test_doctor_says_which_attention_kernel_runs_and_why(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if " attention " in line)
    assert "fp32 c" in line and "bf16 c" in line  # cpu-flash, cuda-flash, cuda-efficient
    assert line.count("(") == 2 == line.count(")")


def test_the_paper_prints_six_rates() -> None:
    assert published_flops() == {
        0.0: 2.32e12,
        0.5: 1.68e12,
        0.6: 1.54e12,
        0.7: 1.38e12,
        0.8: 1.20e12,
        0.9: 0.98e12,
    }


def test_the_command_measures_every_row_and_keeps_a_record_of_each(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (
        "profile --encoder slim-tiny --dim 24 --tokens 64 --reducer tome --rates 0.9 --repeats 1 --format csv"
    )
    assert run([*words.split(), "--out", str(tmp_path)]) == 0
    said = capsys.readouterr()
    found = list(csv.DictReader(said.out.splitlines()))
    assert [(row["reducer"], row["rate"]) for row in found] == [("none", "0.0"), ("tome", "0.9")]
    assert "[2/2] slim-tiny tome 0.9 fp32 on 64 patches, about" in said.err
    records = [json.loads(path.read_text()) for path in sorted((tmp_path / "profiles").iterdir())]
    assert {record["subject"]["reducer"] for record in records} == {"none", "tome"}
    assert all(record["provenance"]["machine"]["flags"] is not None for record in records)
    assert all(record["process_bytes"] > record["pass_bytes"] >= 0 for record in records)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--tokens many", "expected numbers of patches such as 17182"),
        ("--tokens 0", "expected numbers of patches"),
        ("--format pdf", "no format is called 'pdf'"),
        ("--reducer tom", "did you mean tome"),
        ("--rates 1.5", "a pruning rate lies in"),
    ],
)
def test_mistakes_are_told_before_anything_is_measured(
    words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["profile", *words.split()]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gpu_is_measured_by_its_own_clock_and_allocator(precision: str) -> None:
    found = profile(TINY.model_copy(update={"device": "cuda", "patches": 3000, "precision": precision}))
    assert found.stated == found.counted == found.fvcore
    assert found.process_bytes > found.pass_bytes > 3001 * 48 * 4  # the residual stream at least
    assert 0 < found.reducer_share < 1
