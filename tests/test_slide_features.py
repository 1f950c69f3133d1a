"""Embeddings that other programs made are rows like any other: found, checked, named by their card, compared on the
same slides."""

import pickle
import shlex
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

import slimbench
import slimbench.encoders as room
from slimbench import Plan, SlideInput, Tokens
from slimbench.cohorts import open_cohort
from slimbench.cohorts.check import check
from slimbench.cohorts.init import init
from slimbench.cohorts.table import TableCohort
from slimbench.encoders.mean_pool import MeanPool
from slimbench.encoders.slide_feature_files import contents, read_card
from slimbench.encoders.slide_features import SlideFeatures
from slimbench.errors import CohortError, UsageError
from slimbench.leaderboard.board import leaderboard
from slimbench.leaderboard.compare import reader
from slimbench.leaderboard.render import to_latex
from slimbench.registry import encoders
from slimbench.runs.cell import identify, run_cell
from slimbench.runs.checks import check_cohort, reads_of
from slimbench.runs.grid import grid
from slimbench.runs.record import Cell, Record

pytestmark = pytest.mark.usefixtures("own_cache")

HIPT = Path(__file__).parent.parent.parent / "shared" / "data" / "hipt-tcga"
VECTORS = {"a": np.array([1, 2, 3], np.float32), "b": np.array([-1, 0.5, 0], np.float32)}
CARD = 'encoder = "TITAN"\npooling = "attention"\nlayer = 6\nprecision = "fp16"\n'


def trident(folder: Path, vectors: dict[str, np.ndarray]) -> Path:
    folder.mkdir()
    for name, vector in vectors.items():
        with h5py.File(folder / f"{name}.h5", "w") as file:
            file["features"] = vector
    return folder


def torch_files(folder: Path, vectors: dict[str, np.ndarray]) -> Path:
    folder.mkdir()
    for name, vector in vectors.items():
        torch.save(torch.from_numpy(vector)[None], folder / f"{name}.pt")
    return folder


def titan(path: Path, vectors: dict[str, np.ndarray]) -> Path:
    content = {"filenames": list(vectors), "embeddings": np.stack(list(vectors.values()))}
    path.with_suffix(".pkl").write_bytes(pickle.dumps(content))
    return path.with_suffix(".pkl")


def packed_npz(path: Path, vectors: dict[str, np.ndarray]) -> Path:
    rows, offsets = np.stack(list(vectors.values())), np.arange(len(vectors) + 1)
    np.savez(path.with_suffix(".npz"), features=rows, offsets=offsets, slide_id=list(vectors))
    return path.with_suffix(".npz")


def embedded(path: Path, *slides: tuple[str, str | None]) -> np.ndarray:
    encoder = SlideFeatures(8, path=str(path))
    nothing = Tokens.of(torch.empty(0, 8))
    return encoder(
        [SlideInput(slide, nothing, patient=patient) for slide, patient in slides], Plan()
    ).embedding.numpy()


@pytest.fixture
def study(tmp_path, write_trident) -> tuple[Path, dict[str, np.ndarray]]:
    """A cohort file of 40 slides with patch features, and slide features that lie beside them."""
    draw = np.random.default_rng(0)
    rows, vectors = ["slide_id,case_id,label,split"], {}
    for number in range(40):
        slide, label = f"s{number:02}", "AB"[number % 2]
        write_trident(tmp_path / "features", slide)
        vectors[slide] = (draw.normal(size=4) + (label == "B")).astype(np.float32)
        rows.append(f"{slide},p{number},{label},{('train', 'train', 'val', 'test')[number // 2 % 4]}")
    (tmp_path / "slides.csv").write_text("\n".join(rows) + "\n")
    file = tmp_path / "study.toml"
    file.write_text('features = "features"\n[slides]\ntable = "slides.csv"\nlabel = "label"\n')
    return file, vectors


def cell_of(
    cohort: Path, encoder: str, tasks: tuple[str, ...] = ("knn:k=5", "efficiency", "retrieval")
) -> Cell:
    asked = {"encoder": encoder, "reducer": "none", "text": "tfidf", "recipe": "tiny", "tasks": tasks}
    return Cell(rate=0, trained_at=0, seed=0, cohort=str(cohort), **asked)


def run(cohort: Path, encoder: str, out: Path, **changes) -> Record:
    return run_cell(cell_of(cohort, encoder, **changes), out, lambda progress: None)


# finding them


@pytest.mark.parametrize("write", [trident, torch_files, titan, packed_npz])
def test_every_kind_of_file_gives_the_vectors_as_they_are(tmp_path, write):
    path = write(tmp_path / "features", VECTORS)
    np.testing.assert_array_equal(embedded(path, ("b", None), ("a", None)), [[-1, 0.5, 0], [1, 2, 3]])


def test_slides_are_found_as_tables_are_joined_and_else_by_their_patient(tmp_path):
    uuid = "0da1d5cc-3f0e-4a4f-9d8a-3b5a7c9e1f20"
    path = titan(tmp_path / "t", {"TCGA-A7-A0CJ-01Z-00-DX2": VECTORS["a"], "TCGA-E2-A1LB": VECTORS["b"]})
    slides = (
        (f"TCGA-A7-A0CJ-01Z-00-DX2.{uuid}", "TCGA-A7-A0CJ"),
        ("TCGA-E2-A1LB-01Z-00-DX1.svs", "TCGA-E2-A1LB"),
    )
    np.testing.assert_array_equal(embedded(path, *slides), [[1, 2, 3], [-1, 0.5, 0]])


def test_a_patients_vector_is_not_that_of_another_slide(tmp_path):
    encoder = SlideFeatures(8, path=str(titan(tmp_path / "t", {"P1": VECTORS["a"], "P2": VECTORS["b"]})))
    nothing = Tokens.of(torch.empty(0, 8))
    slides = [
        SlideInput(name, nothing, patient=patient)
        for name, patient in (("P1.svs", "P1"), ("P2-A", "P2"), ("P2-B", "P2"))
    ]
    encoder.look_at(slides)
    np.testing.assert_array_equal(encoder(slides[1:], Plan()).embedding, np.stack([VECTORS["b"]] * 2))
    with pytest.raises(CohortError, match=r"no slide features of slide P1-B \(1 of 4 slides"):
        encoder.look_at([*slides, SlideInput("P1-B", nothing, patient="P1")])


def test_patch_features_are_refused_before_they_are_hashed(tmp_path, write_trident, monkeypatch):
    monkeypatch.setattr("slimbench.files._digest_of", lambda file: pytest.fail(f"{file} was hashed"))
    write_trident(tmp_path / "patches", "a")
    for ask in (lambda path: contents(path), lambda path: SlideFeatures(8, path=path)):
        with pytest.raises(CohortError, match="a has 12 rows, slide features have one per slide"):
            ask(str(tmp_path / "patches"))


def test_missing_slides_are_one_line_that_counts_them(tmp_path):
    encoder = SlideFeatures(8, path=str(titan(tmp_path / "t", VECTORS)))
    nothing = Tokens.of(torch.empty(0, 8))
    slides = [SlideInput(name, nothing) for name in "axby"]
    with pytest.raises(
        CohortError, match=r"t\.pkl: no slide features of slide x \(2 of 4 slides have none\)"
    ) as told:
        encoder.look_at(slides)
    assert "\n" not in str(told.value)
    with pytest.raises(CohortError, match="of slide x"):
        encoder(slides, Plan())


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (np.ones((12, 3), np.float32), "b has 12 rows, slide features have one per slide"),
        (np.ones(4, np.float32), "slide b has width 4, the cohort has 3"),
        (np.array([1, np.nan, 0], np.float32), "slide b has NaN"),
    ],
)
def test_what_is_no_vector_of_a_slide_is_refused(tmp_path, features, message):
    path = torch_files(tmp_path / "features", {"a": VECTORS["a"], "b": features})
    with pytest.raises(CohortError, match=message):
        embedded(path, ("a", None), ("b", None))


def test_without_features_it_says_what_it_wants(tmp_path):
    with pytest.raises(UsageError, match="slide-features:path=FOLDER_OR_FILE"):
        encoders.build("slide-features", input_dim=8)
    with pytest.raises(UsageError, match="slide-features:path=FOLDER_OR_FILE"):
        encoders.by_content("slide-features")
    with pytest.raises(CohortError, match="no such file or folder"):
        encoders.by_content(f"slide-features:path={tmp_path / 'none.pkl'}")


# the card


def test_a_card_lies_beside_the_file_or_in_the_folder_or_is_named(tmp_path):
    file, folder = titan(tmp_path / "t", VECTORS), trident(tmp_path / "f", VECTORS)
    assert read_card(file) is None and read_card(folder) is None
    (tmp_path / "t.pkl.card.toml").write_text(CARD)
    (folder / "card.toml").write_text(CARD.replace("TITAN", "CHIEF"))
    card = SlideFeatures(8, path=str(file)).facts["card"]
    assert card == {"encoder": "TITAN", "pooling": "attention", "layer": "6", "precision": "fp16"}
    assert SlideFeatures(8, path=str(folder)).facts["card"]["encoder"] == "CHIEF"
    named = SlideFeatures(8, path=str(folder), card=str(tmp_path / "t.pkl.card.toml"))
    assert named.facts["card"]["encoder"] == "TITAN"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('encoder = "T"\npoling = "cls"', "has no key 'poling'; did you mean pooling"),
        ('pooling = "cls"', "encoder: Field required"),
        ('encoder = ""', "encoder"),
        ("encoder", "card.toml: "),
    ],
)
def test_a_wrong_card_is_one_line(tmp_path, text, message):
    (tmp_path / "card.toml").write_text(text)
    with pytest.raises(CohortError, match=message) as told:
        read_card(tmp_path)
    assert "\n" not in str(told.value)


def test_features_and_card_count_by_what_they_hold(tmp_path):
    one = trident(tmp_path / "one", VECTORS)
    other = tmp_path / "other"
    other.mkdir()
    for path in one.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    (other / "README.txt").write_text("no number depends on it")
    assert contents(str(one)) == contents(str(other))
    assert encoders.by_content(f"slide-features:path={one}") == f"slide-features:path={contents(str(one))}"
    (other / "card.toml").write_text(CARD)
    with_card = contents(str(other))
    assert with_card != contents(str(one))
    with h5py.File(other / "a.h5", "r+") as file:
        file["features"][0] = 7
    assert contents(str(other)) not in (with_card, contents(str(one)))


# rows


def test_it_has_one_row_beside_those_of_reducers(study):
    file, _ = study
    asked = grid("cropr", "0.5,0.9", encoders=["slide-features:path=t.pkl", "slim-tiny"], cohort=str(file))
    rows = [(c.encoder, c.reducer, c.rate) for c in asked.cells(open_cohort(str(file)).defaults)]
    assert rows == [
        ("mean-pool", "none", 0),
        ("slide-features:path=t.pkl", "none", 0),
        ("slim-tiny", "none", 0),
        ("slim-tiny", "cropr", 0.5),
        ("slim-tiny", "cropr", 0.9),
    ]


def test_the_room_knows_which_of_its_encoders_read_no_patches():
    for name in room.BUILT_INS:
        assert (
            (reads_of(name) == "patches")
            == encoders.reads_patches(name)
            == (name not in room.WITHOUT_PATCHES)
        )


def test_a_reducer_has_no_place_in_it(study, tmp_path):
    file, vectors = study
    cell = cell_of(file, f"slide-features:path={titan(tmp_path / 't', vectors)}").model_copy(
        update={"reducer": "tome"}
    )
    with pytest.raises(UsageError, match="reads no patches; tome has nothing to reduce"):
        run_cell(cell, tmp_path / "out", lambda progress: None)


def test_a_run_measures_the_vectors_and_opens_no_patch_file(study, tmp_path, monkeypatch):
    file, vectors = study
    path = titan(tmp_path / "t", vectors)
    (tmp_path / "t.pkl.card.toml").write_text(CARD)
    monkeypatch.setattr(TableCohort, "patches", lambda self, slide: pytest.fail(f"{slide} was read"))
    record = run(file, f"slide-features:path={path}", tmp_path / "out")
    slides = open_cohort(str(file)).slides
    x, y = ({s: np.stack([of[i.id] for i in slides if i.split == s]) for s in ("train", "test")} for of in (
        vectors, {i.id: np.array(i.label) for i in slides}))  # fmt: skip
    expected = KNeighborsClassifier(5).fit(x["train"], y["train"]).score(x["test"], y["test"])
    found = {metric.name: metric.value for metric in record.tasks["knn:k=5"].metrics}
    assert found["accuracy"] == pytest.approx(expected) and 0.5 < expected < 1
    assert record.tasks["efficiency"].skipped == "the encoder reads no patches"
    assert record.tasks["retrieval"].skipped == "the encoder is not aligned with text"
    assert record.kept is None and record.training is None
    said = record.provenance["encoder"]
    assert said["card"]["encoder"] == "TITAN" and not said["collapse"]["collapsed"]
    rows = np.stack([vectors[slide.id] for slide in slides]).astype(float)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    cosine = (unit @ unit.T)[~np.eye(len(rows), dtype=bool)].mean()
    assert said["collapse"]["mean_pairwise_cosine"] == pytest.approx(cosine, abs=1e-9)


def test_tables_name_rows_by_their_card_and_mark_those_without(study, tmp_path):
    file, vectors = study
    carded, bare = titan(tmp_path / "carded", vectors), titan(tmp_path / "bare", vectors)
    (tmp_path / "carded.pkl.card.toml").write_text(CARD)
    alike = titan(tmp_path / "alike", {name: 1 + 0.001 * vector for name, vector in vectors.items()})
    records = [
        run(file, f"slide-features:path={path}", tmp_path / "out", tasks=("knn:k=5",))
        for path in (carded, bare, alike)
    ]
    (table,) = leaderboard(records)
    names = [column.title for column in table.columns]
    marks = {row[names.index("encoder")].text: row[names.index("marks")].text for row in table.rows}
    assert "no card" not in marks["TITAN"] and "collapsed" not in marks["TITAN"]
    assert "no card" in marks[f"slide-features:path={bare}"]
    assert "collapsed" in marks[f"slide-features:path={alike}"]
    assert (
        "TITAN: slide features of another program, pooling attention, layer 6, precision fp16" in table.notes
    )
    assert sum(note.startswith("no card: ") for note in table.notes) == 1
    assert "TITAN" in to_latex([table])


def test_a_sweep_names_missing_slides_before_anything_runs(study, tmp_path):
    file, vectors = study
    path = titan(
        tmp_path / "t", {name: vector for name, vector in vectors.items() if name not in ("s07", "s11")}
    )
    with pytest.raises(
        CohortError, match=r"t\.pkl: no slide features of slide s07 \(2 of 40 slides have none\)"
    ):
        slimbench.sweep("none", 0, cohort=str(file), encoders=f"slide-features:path={path}", tasks="knn",
                        text="tfidf", out=tmp_path / "out")  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_the_same_features_elsewhere_are_the_same_cell(study, tmp_path):
    file, vectors = study
    cohort, (one, other) = open_cohort(str(file)), (titan(tmp_path / name, vectors) for name in ("t", "u"))
    cells = [cell_of(file, f"slide-features:path={path}") for path in (one, other)]
    first, second = (identify(cell, cohort).key(cell) for cell in cells)
    assert first == second


def test_random_pool_is_read_against_the_mean_of_all_patches_of_the_same_seed(tmp_path, study):
    file, _ = study
    cells = [
        cell_of(file, "mean-pool", ("knn:k=5",)).model_copy(
            update={"reducer": reducer, "rate": rate, "trained_at": rate, "seed": seed}
        )
        for reducer, rate in (("none", 0.0), ("random", 0.5))
        for seed in (0, 1)
    ]
    records = [run_cell(cell, tmp_path / "out", lambda progress: None) for cell in cells]
    (table,) = leaderboard(records, read=reader(tmp_path / "out"))
    names = [f"{column.group} {column.title}".strip() for column in table.columns]
    lines = [dict(zip(names, row, strict=True)) for row in table.rows]
    assert [(line["encoder"].text, line["reducer"].text, line["seeds"].text) for line in lines] == [
        ("mean-pool", "none", "2"),
        ("mean-pool", "random", "2"),
    ]
    by_seed = {
        (r.cell.reducer, r.cell.seed): next(
            m.value for m in r.tasks["knn:k=5"].metrics if m.name == "balanced_accuracy"
        )
        for r in records
    }
    mean = np.mean([by_seed["random", seed] - by_seed["none", seed] for seed in (0, 1)])
    assert lines[1]["knn:k=5 Δ unpruned"].value == pytest.approx(mean)


def test_a_cohort_of_slide_features_alone_is_their_mean_pool(study, tmp_path):
    file, vectors = study
    trident(tmp_path / "slide_features_titan", vectors)
    only = tmp_path / "only.toml"
    only.write_text(file.read_text().replace('"features"', '"slide_features_titan"'))
    pooled = run(only, "mean-pool", tmp_path / "out", tasks=("knn:k=5",))
    looked_up = run(
        only, f"slide-features:path={tmp_path / 'slide_features_titan'}", tmp_path / "out", tasks=("knn:k=5",)
    )
    assert pooled.tasks["knn:k=5"].metrics == looked_up.tasks["knn:k=5"].metrics


@pytest.mark.skipif(
    not HIPT.is_dir(), reason="needs ../shared/data/hipt-tcga, real TCGA slides that are not shipped"
)
def test_real_ids_are_found_without_their_uuid(tmp_path):
    with np.load(HIPT / "test.npz") as held:
        features, offsets, names = (
            held["features"].astype(np.float32),
            held["offsets"],
            held["slide_id"].tolist(),
        )
    bags = [features[a:b] for a, b in pairwise(offsets)]
    vectors = {name.partition(".")[0]: bag.mean(axis=0) for name, bag in zip(names, bags, strict=True)}
    assert len(vectors) == len(names) == 1241
    path = titan(tmp_path / "mean", vectors)
    slides = [
        SlideInput(name, Tokens.of(torch.from_numpy(bag))) for name, bag in zip(names, bags, strict=True)
    ]
    SlideFeatures(192, path=str(path)).look_at(slides)
    found = embedded(path, *((name, None) for name in names))
    pooled = MeanPool(192)(slides, Plan()).embedding.numpy()
    np.testing.assert_allclose(found, pooled, atol=1e-5)


def test_checks_ask_nothing_of_encoders_that_read_patches(study):
    file, _ = study
    told = []
    check_cohort([("encoder", "slim-tiny"), ("task", "knn")], open_cohort(str(file)), told.append)
    assert told == ["slim-tiny", "knn"]


# the README


def console_of(section: str) -> list[list[str]]:
    """The commands of the first console block of a section of the README."""
    page = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    block = page.partition(f"## {section}\n")[2].partition("```console\n")[2].partition("```")[0]
    return [shlex.split(line) for line in block.splitlines()]


@pytest.mark.slow
def test_the_commands_of_the_readme_go_from_a_trident_folder_to_a_latex_table(tmp_path, write_trident):
    draw, inside = np.random.default_rng(0), tmp_path / "20x_512px_0px_overlap"
    labels, reports, vectors = ["slide_id,case_id,diagnosis"], ["slide_id,text"], {}
    for number in range(40):
        slide, label = f"S{number:03}", ("LUAD", "LUSC")[number % 2]
        shift = draw.normal(size=8) * (number % 2)
        write_trident(
            inside / "features_conch_v15", slide, features=(draw.normal(size=(20, 8)) + shift).astype("f4")
        )
        vectors[slide] = (draw.normal(size=6) + 3 * (number % 2)).astype(np.float32)
        labels.append(f"{slide},P{number},{label}")
        reports.append(f'{slide},"Specimen {number} of the lung, seen to be {label.lower()} throughout"')
    trident(inside / "slide_features_titan", vectors)
    (inside / "slide_features_titan" / "card.toml").write_text(CARD)
    (tmp_path / "labels.csv").write_text("\n".join(labels) + "\n")
    (tmp_path / "reports.csv").write_text("\n".join(reports) + "\n")
    commands = console_of("From a TRIDENT folder to a LaTeX table")
    assert [" ".join(words[1:3]) for words in commands] == [
        "data init", "data split", "data check", "sweep --cohort", "leaderboard study",
    ]  # fmt: skip
    for words in commands:
        arguments = words[1:] if ">" not in words else words[1 : words.index(">")]
        done = subprocess.run(
            [sys.executable, "-m", "slimbench", *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout}\n{done.stderr}"
        if ">" in words:
            (tmp_path / words[-1]).write_text(done.stdout)
    lines = [line for line in done.stdout.splitlines() if " & " in line]
    rows = [[cell.strip() for cell in line.split("&")] for line in lines]
    assert [row[:3] for row in rows if row[1] in ("none", "cropr")] == [
        ["mean-pool", "none", "0"],
        ["TITAN", "none", "0"],
        ["slim-tiny", "none", "0"],
        ["text-only", "none", "0"],
        ["slim-tiny", "cropr", "0.9"],
    ]
    assert r"\begin{tabular}" in done.stdout and "no card" not in done.stdout
    assert "pooling attention, layer 6, precision fp16" in done.stdout


def test_init_puts_patches_first_and_says_how_slide_features_become_a_row(tmp_path, write_trident):
    vectors = {f"s{number}": np.full(4, number, np.float32) for number in range(9)}
    for slide in list(vectors)[:5]:
        write_trident(tmp_path / "features", slide)
    titan(tmp_path / "t", vectors)  # more slides than have patches
    (tmp_path / "slides.csv").write_text(
        "slide_id,label\n" + "\n".join(f"{slide},A" for slide in vectors) + "\n"
    )
    text = init(tmp_path)
    assert 'features = "features"\n# features = "t.pkl"    # found too; a row of its own: ' in text
    assert f"--encoder slide-features:path={tmp_path}/t.pkl\n" in text


def test_init_of_slide_features_alone_is_a_cohort_of_theirs(tmp_path):
    vectors = {f"s{number}": np.full(4, number, np.float32) for number in range(4)}
    trident(tmp_path / "slide_features_titan", vectors)
    rows = "\n".join(f"s{n},{'AB'[n % 2]},{('train', 'test')[n // 2]}" for n in range(4))
    (tmp_path / "slides.csv").write_text(f"slide_id,label,split\n{rows}\n")
    (tmp_path / "c.toml").write_text(init(tmp_path))
    cohort = open_cohort(str(tmp_path / "c.toml"))
    assert [slide.patches for slide in cohort.slides] == [1] * 4 and cohort.dim == 4
    (found,) = [each for each in check(tmp_path / "c.toml") if each.subject == "collapse"]
    assert found.severity == "warning"  # 0, 1, 2, 3 times the same vector
