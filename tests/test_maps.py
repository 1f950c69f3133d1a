"""Pictures and GeoJSON of kept sets: the right patches in the right places."""

from __future__ import annotations

import json
import re
import sys
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from slimbench.cli import run
from slimbench.cohorts import open_cohort
from slimbench.maps.colors import KEPT, colors
from slimbench.maps.kept import kept_maps
from slimbench.maps.page import row_names
from slimbench.maps.shapes import outline, rectangles
from slimbench.runs.record import Cell, Identity, Record
from slimbench.runs.store import Store
from slimbench.training.slides import SlideLoader, thinned

pytestmark = pytest.mark.usefixtures("own_cache")
SVG = "{http://www.w3.org/2000/svg}"
EDGE = 1036
LEFT = np.array([255, 1, 1, 2, 255, 255, 2, 1, 1, 1, 2, 255], np.uint8)  # rows of five patches


def cohort_file(folder: Path, write_trident, edge: int = EDGE) -> str:
    """A cohort of three TRIDENT slides in TRIDENT's own folders."""
    features = folder / "20x_512px_0px_overlap" / "features_conch_v15"
    for slide in ("slide-a", "slide-b", "slide-c"):
        write_trident(features, slide, edge=edge)
    (folder / "slides.csv").write_text(
        "slide_id,case_id,split,diagnosis\nslide-a,p1,test,LUAD\nslide-b,p2,test,LUSC\nslide-c,p3,train,LUAD\n"
    )
    file = folder / "study.toml"
    file.write_text(
        'name = "study"\nfeatures = "20x_512px_0px_overlap/features_conch_v15"\n'
        '[slides]\ntable = "slides.csv"\nlabel = "diagnosis"\n'
    )
    return str(file)


def put(out: Path, cohort: str, reducer: str, rate: float, left=LEFT, *, later: int = 0, **cell) -> str:
    """A finished cell that left kept sets; its key."""
    opened = open_cohort(cohort)
    fields = {"encoder": "slim-base", "text": "tfidf", "recipe": "tiny", "tasks": ("saliency",), "seed": 0}
    fields |= {"trained_at": rate} | cell
    made = Cell(reducer=reducer, rate=rate, cohort=cohort, **fields)
    identity = Identity(cohort=opened.fingerprint, code={"later": str(later)})
    store, key = Store(out), identity.key(made)
    now = datetime.now(UTC) + timedelta(seconds=later)
    store.prepare()
    store.write_kept_sets(
        key, {slide.id: np.resize(left, slide.patches) for slide in opened.split("test")[:2]}
    )
    store.write_record(
        Record(
            key=key,
            cell=made,
            identity=identity,
            cohort_name=opened.name,
            status="ok",
            started=now,
            ended=now,
            seconds=1.0,
        )
    )
    return key


@pytest.fixture
def study(tmp_path, write_trident) -> tuple[Path, str]:
    cohort = cohort_file(tmp_path, write_trident)
    out = tmp_path / "out"
    put(out, cohort, "none", 0.0, np.array([255], np.uint8))
    put(out, cohort, "cropr", 0.5)
    put(out, cohort, "cropr", 0.9, np.array([1, 1, 1, 2, 255, 1], np.uint8))
    put(out, cohort, "tome", 0.9)
    return out, cohort


def said(capsys, *words) -> tuple[int, str, str]:
    code = run(["maps", *map(str, words)])
    return code, *capsys.readouterr()


def areas(svg: Path) -> dict[str, float]:
    """{id of a group of patches: area of the polygons in it}, by the shoelace formula."""
    found: dict[str, float] = {}
    for group in ElementTree.parse(svg).iter(f"{SVG}g"):
        if not re.match(r"[0-9a-f]{16}-", group.get("id") or ""):
            continue
        for path in group.findall(f"{SVG}path"):
            corners = [
                np.array(part.split(), float) for part in re.split(r"[MLz]", path.get("d")) if part.strip()
            ]
            assert len(corners) % 4 == 0
            x, y = np.stack(corners).reshape(-1, 4, 2).transpose(2, 0, 1)
            area = np.abs((x * np.roll(y, -1, 1) - y * np.roll(x, -1, 1)).sum(axis=1) / 2).sum()
            found[group.get("id")] = found.get(group.get("id"), 0) + area
    return found


def test_an_svg_shows_as_many_patches_as_left_at_each_block(study, capsys):
    out, _ = study
    code, printed, _ = said(capsys, out, "--slide", "slide-a", "--format", "svg")
    assert code == 0 and printed == f"{out}/maps/slide-a.svg\n"
    drawn = areas(out / "maps" / "slide-a.svg")
    keys = {(r.cell.reducer, r.cell.rate): r.key for r in Store(out).scan().records.values()}
    for cell, counts in {
        ("cropr", 0.5): {"1": 5, "2": 3, "kept": 4},
        ("cropr", 0.9): {"1": 8, "2": 2, "kept": 2},
        ("tome", 0.9): {"1": 5, "2": 3, "kept": 4},
    }.items():
        found = {name: drawn[f"{keys[cell]}-{name}"] for name in counts}
        one = sum(found.values()) / 12
        assert {name: area / one for name, area in found.items()} == pytest.approx(counts, rel=1e-3)
    assert not any(name.startswith(keys["none", 0.0]) for name in drawn)
    words = " ".join(
        text.text or "" for text in ElementTree.parse(out / "maps/slide-a.svg").iter(f"{SVG}text")
    )
    for expected in (
        "slide-a",
        "LUAD",
        "cropr",
        "tome",
        "pruning rate 0.5",
        "kept to the end",
        "2 patches = 2,072 px",
    ):
        assert expected in words


def test_one_cell_is_drawn_block_by_block(study, capsys):
    out, _ = study
    words = ("--slide", "slide-b", "--reducer", "cropr", "--rates", "0.5", "--format", "svg")
    code, printed, _ = said(capsys, out, *words)
    (key,) = [
        r.key for r in Store(out).scan().records.values() if (r.cell.reducer, r.cell.rate) == ("cropr", 0.5)
    ]
    path = Path(printed.strip())
    assert code == 0 and path.name == f"slide-b.cropr.0.5.{key[:6]}.svg"
    groups = {name for name in areas(path) if name.startswith(key)}
    assert groups == {f"{key}{block}-{left}" for block in ("", "-1", "-2") for left in ("1", "2", "kept")}
    text = path.read_text()
    for expected in ("kept after block 1", "7 of 12 (58.3 %)", "kept after block 2", "4 of 12 (33.3 %)"):
        assert expected in text


def test_the_same_command_writes_the_same_bytes(study, capsys):
    out, _ = study
    for format in ("svg", "png"):
        path = out / "maps" / f"slide-a.{format}"
        said(capsys, out, "--slide", "slide-a", "--format", format)
        first = path.read_bytes()
        said(capsys, out, "--slide", "slide-a", "--format", format)
        assert path.read_bytes() == first


def test_a_png_opens_and_shows_the_kept_colour(study, capsys):
    out, _ = study
    assert said(capsys, out, "--slide", "slide-a", "--slide", "slide-b")[0] == 0
    with Image.open(out / "maps" / "slide-b.png") as picture:
        assert picture.width > 1000 and picture.height > 800
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    shares = {left: (pixels == rgb).all(axis=1).sum() for left, rgb in colors([1, 2, 255]).items()}
    # 4 + 4 + 2 of 36 patches are kept, 5 + 5 + 8 left after block 1 (the legend's swatches are small).
    assert shares[1] / shares[255] == pytest.approx(18 / 10, rel=0.1)


def test_lesions_are_outlined_and_counted(tmp_path, capsys):
    slide = open_cohort("digits").split("test")[0]
    lesion = open_cohort("digits").patches(slide.id).lesion
    key = put(tmp_path / "o", "digits", "cropr", 0.5, np.where(lesion, 255, 1).astype(np.uint8))
    assert said(capsys, tmp_path / "o", "--slide", slide.id, "--format", "svg")[0] == 0
    (path,) = (tmp_path / "o" / "maps").iterdir()
    assert f"lesion {lesion.sum()} of {lesion.sum()}" in path.read_text() and "#e05d06" in path.read_text()
    assert key[:6] in path.name


def test_a_thumbnail_stands_beside_the_maps_where_trident_left_one_or_it_is_named(study, tmp_path, capsys):
    out, _ = study
    words = (out, "--slide", "slide-a", "--format", "svg")
    said(capsys, *words)
    assert "tissue" not in (out / "maps/slide-a.svg").read_text()
    (tmp_path / "thumbnails").mkdir()
    Image.new("RGB", (30, 40), (200, 120, 160)).save(tmp_path / "thumbnails" / "slide-a.jpg")
    said(capsys, *words)
    assert "tissue" in (out / "maps/slide-a.svg").read_text()
    assert said(capsys, out, "--slide", "slide-b", "--thumbnail", tmp_path / "thumbnails/slide-a.jpg")[0] == 0
    code, _, error = said(capsys, *words, "--thumbnail", tmp_path / "slides.csv")
    assert code == 1 and "is no picture" in error and error.count("\n") == 1


def test_geojson_has_the_pixels_of_the_h5(study, capsys):
    """Patch 7 stands in column 2 of row 1: pixels 2 * 1036 and 1036 at level 0."""
    out, _ = study
    words = ("--slide", "slide-a", "--reducer", "cropr", "--rates", "0.5", "--format", "geojson")
    code, printed, _ = said(capsys, out, *words)
    collection = json.loads(Path(printed.strip()).read_text())
    assert code == 0 and collection["type"] == "FeatureCollection"
    features = collection["features"]
    assert len(features) == len({feature["id"] for feature in features}) == 12
    ring = [[2072, 1036], [3108, 1036], [3108, 2072], [2072, 2072], [2072, 1036]]
    assert features[7]["geometry"] == {"type": "Polygon", "coordinates": [ring]}
    assert all(type(number) is int for point in features[7]["geometry"]["coordinates"][0] for number in point)
    names = [feature["properties"]["classification"]["name"] for feature in features]
    words_of = {255: "kept to the end", 1: "left after block 1", 2: "left after block 2"}
    assert names == [words_of[left] for left in LEFT.tolist()]
    assert features[0]["properties"]["classification"]["color"] == list(KEPT)
    assert {feature["properties"]["objectType"] for feature in features} == {"tile"}
    code, printed, _ = said(capsys, out, "--slide", "slide-a", "--format", "geojson", "--to", out / "q")
    assert code == 0 and len(printed.split()) == 3 == len(list((out / "q").iterdir()))


def test_geojson_without_a_patch_size_is_one_line(tmp_path, capsys):
    put(tmp_path / "o", "digits", "cropr", 0.5)
    code, _, error = said(capsys, tmp_path / "o", "--slide", "test-000", "--format", "geojson")
    assert code == 1 and error.count("\n") == 1
    assert "slide test-000" in error and "level 0" in error


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ("--slide", "slide-q"),
            r"no test slide of .* is called 'slide-q'; did you mean slide-. or slide-.\?",
        ),
        (("--slide", "x"), r"called 'x'; it has slide-a, slide-b, ... \(2 in all\)"),
        (("--slide", "slide-a", "--reducer", "croppr"), "has reducer 'croppr'; did you mean cropr"),
        (("--slide", "slide-a", "--rates", "0.7"), "no finished cell .* seed; cells: cropr 0.5, cropr 0.9"),
        (("--slide", "slide-a", "--seed", "4"), r"seeds are \[0\]"),
        (("--slide", "slide-a", "--format", "pdf"), "no format is called 'pdf'; known: png, svg, geojson"),
        ((), "no slide is named; add --slide ID"),
        (("--slide", "a", "--slide", "b", "--thumbnail", "t.png"), "--thumbnail is the picture of one slide"),
    ],
)
def test_a_slip_is_one_line(study, capsys, words, expected):
    code, _, error = said(capsys, study[0], *words)
    assert code == 1 and error.count("\n") == 1 and re.search(expected, error), error


def test_a_cohort_that_changed_is_not_drawn(study, tmp_path, capsys):
    out, _ = study
    (tmp_path / "slides.csv").write_text((tmp_path / "slides.csv").read_text().replace("LUSC", "SCLC"))
    code, _, error = said(capsys, out, "--slide", "slide-a")
    assert code == 1 and "has changed since the sweep" in error and error.count("\n") == 1


def test_without_matplotlib_pictures_say_so_and_geojson_goes_on(study, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, _, error = said(capsys, study[0], "--slide", "slide-a")
    assert code == 1 and "pip install 'slimbench[plot]'" in error and error.count("\n") == 1
    assert said(capsys, study[0], "--slide", "slide-a", "--format", "geojson")[0] == 0


def test_rows_say_what_tells_their_cells_apart(study, tmp_path):
    out, cohort = study
    put(out, cohort, "tome", 0.9, schedule="input")
    put(out, cohort, "tome", 0.9, seed=3)
    newest = put(out, cohort, "cropr", 0.9, later=9)
    records = list(Store(out).scan().records.values())
    (maps,) = kept_maps(Store(out), records, ["slide-a"])
    rows = dict(zip(row_names(maps), maps, strict=True))
    assert set(rows) == {"cropr\ngeometric", "tome\ngeometric", "tome\ninput"} and len(maps) == 4
    assert newest in {each.record.key for each in maps}, "of two records of one cell the later one counts"
    (only,) = kept_maps(Store(out), records, ["slide-a"], ["input(tome)"])
    assert row_names(only) == ["tome"] and only[0].record.cell.schedule == "input"
    (other,) = kept_maps(Store(out), records, ["slide-a"], ["tome"], [0.9], seed=3)
    assert [each.record.cell.seed for each in other] == [3]
    (unpruned,) = kept_maps(Store(out), records, ["slide-a"], ["none"])
    assert unpruned[0].kept.all()


def test_one_model_at_many_rates_is_one_row(study, tmp_path):
    out, cohort = tmp_path / "trained", study[1]
    for reducer, rate in (("cropr", 0.5), ("cropr", 0.8), ("cropr", 0.9), ("none", 0.0)):
        put(out, cohort, reducer, rate, trained_at=0.0 if reducer == "none" else 0.8)
    records = list(Store(out).scan().records.values())
    (maps,) = kept_maps(Store(out), records, ["slide-a"], ["cropr", "none"])
    assert sorted(row_names(maps)) == ["cropr\ntrained at 0.8"] * 3 + ["none\ntrained at 0"]
    (one,) = kept_maps(Store(out), records, ["slide-a"], ["cropr"])
    assert row_names(one) == ["cropr"] * 3


def test_an_encoder_is_told_the_patch_size(study):
    load = SlideLoader(open_cohort(study[1]), torch.device("cpu"))
    assert load("slide-a").patch_size == EDGE == thinned(load("slide-a"), 0.5, seed=0).patch_size


def test_shapes_cover_the_squares_and_nothing_else():
    rng = np.random.default_rng(0)
    cells = np.argwhere(rng.random((20, 30)) < 0.5)[:, ::-1]
    drawn = np.zeros((20, 30), int)
    for x, y, width, height in rectangles(cells[rng.permutation(len(cells))]).astype(int):
        drawn[y : y + height, x : x + width] += 1
    expected = np.zeros((20, 30), int)
    expected[cells[:, 1], cells[:, 0]] = 1
    assert (drawn == expected).all()
    assert len(outline(np.array([[0, 0], [1, 0]]))) == 6 and len(outline(np.array([[0, 0], [1, 1]]))) == 8
    assert rectangles(np.empty((0, 2))).shape == (0, 4)


def test_colours_darken_the_longer_a_patch_stays():
    for exits in ([1, 255], [0, 1, 2, 3, 4, 5, 255], list(range(12))):
        lightness = [np.dot(rgb, (0.2126, 0.7152, 0.0722)) for _, rgb in sorted(colors(exits).items())]
        assert all(a - b > 4 for a, b in pairwise(lightness))
