"""Cohort files: what they may say, how tables are joined, and one line for each thing that is wrong."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from slimbench.cohorts import open_cohort
from slimbench.cohorts.cohort import Defaults
from slimbench.cohorts.config import read_cohort_file
from slimbench.cohorts.join import Finder, bad_id, tcga_patient
from slimbench.cohorts.table import open_file
from slimbench.cohorts.tables import read_table
from slimbench.errors import CohortError
from slimbench.runs.cell import run_cell
from slimbench.runs.record import Cell

pytestmark = pytest.mark.usefixtures("own_cache")
SHARED = Path(__file__).parents[2] / "shared" / "data"
UUID = "0DA1D5CC-7E14-4C5E-8F4F-0F2A5D7A3B11"

TOML = """
features = "features"

[slides]
table = "slides.csv"
label = "label"
"""
SLIDES = """slide_id,case_id,label,split
a,p1,LUAD,train
b,p1,LUAD,train
c,p2,LUSC,val
d,p3,LUSC,test
"""


@pytest.fixture
def folder(tmp_path, write_trident):
    """A cohort of four slides that is right; each test breaks one thing."""
    for slide in "abcd":
        write_trident(tmp_path / "features", slide)
    (tmp_path / "slides.csv").write_text(SLIDES)
    (tmp_path / "cohort.toml").write_text(TOML)
    return tmp_path


def change(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def opened(folder):
    return open_cohort(str(folder / "cohort.toml"))


def error(folder, pattern):
    with pytest.raises(CohortError, match=pattern) as caught:
        cohort = opened(folder)
        for slide in cohort.slides:
            cohort.patches(slide.id)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# what a cohort is


def test_the_short_file_is_enough(folder):
    cohort = opened(folder)
    assert cohort.name == "cohort" and cohort.dim == 8 and cohort.classes == ("LUAD", "LUSC")
    assert [slide.id for slide in cohort.slides] == ["d", "a", "b", "c"]  # by split, then id
    slide = cohort.split("val")[0]
    assert (slide.patient, slide.label, slide.patches, slide.report) == ("p2", "LUSC", 12, None)
    patches = cohort.patches("a")
    assert patches.features.shape == (12, 8) and patches.coords.shape == (12, 2)
    assert cohort.defaults == Defaults(tasks=("linear-probe", "efficiency"))
    assert cohort.prompts is None and cohort.dropped == {}


REPORTS = '[reports]\ntable = "reports.csv"\n'
PROMPTS = "[prompts.names]\nLUAD = ['adenocarcinoma']\nLUSC = ['squamous cell carcinoma']\n"


@pytest.mark.parametrize(
    ("changed", "tasks"),
    [
        (lambda text: text + REPORTS, ("linear-probe", "retrieval", "efficiency")),
        (lambda text: text + PROMPTS, ("linear-probe", "zero-shot", "efficiency")),
        (lambda text: text.replace('label = "label"', "") + REPORTS, ("retrieval", "efficiency")),
        (lambda text: text + '[defaults]\ntasks = ["knn"]', ("knn",)),
    ],
)
def test_no_task_is_a_default_that_the_tables_cannot_answer(folder, changed, tasks):
    (folder / "cohort.toml").write_text(changed(TOML))
    (folder / "slides.csv").write_text(SLIDES.replace("c,p2,LUSC,val", "c,p2,LUSC,test"))
    (folder / "reports.csv").write_text("slide_id,text\nc,one\nd,two\n")
    assert opened(folder).defaults.tasks == tasks


def test_a_cohort_travels_to_another_process(folder):
    cohort = opened(folder)
    copy = pickle.loads(pickle.dumps(cohort))
    assert copy.slides == cohort.slides
    np.testing.assert_array_equal(copy.patches("a").features, cohort.patches("a").features)


def test_yaml_says_the_same_as_toml(folder):
    (folder / "cohort.yaml").write_text(
        "features: features\nslides: {table: slides.csv, label: label}\nname: cohort\n"
    )
    assert open_cohort(str(folder / "cohort.yaml")).fingerprint == opened(folder).fingerprint


def test_the_fingerprint_follows_data_and_not_places(folder, tmp_path_factory, write_trident):
    first = opened(folder).fingerprint
    moved = tmp_path_factory.mktemp("moved") / "here"
    folder.rename(moved)
    assert opened(moved).fingerprint == first
    write_trident(moved / "features", "a", features=np.ones((12, 8), np.float32))
    second = opened(moved).fingerprint
    assert second != first
    change(moved / "slides.csv", "LUAD,train\nb", "LUSC,train\nb")
    assert opened(moved).fingerprint not in (first, second)


def test_one_table_per_split(folder):
    for split, rows in (("train", "a,p1,LUAD\nb,p1,LUAD"), ("val", "c,p2,LUSC"), ("test", "d,p3,LUSC")):
        (folder / f"{split}.csv").write_text(f"slide_id,case_id,label\n{rows}\n")
    change(
        folder / "cohort.toml",
        'table = "slides.csv"',
        'train = "train.csv"\nval = "val.csv"\ntest = "test.csv"',
    )
    assert {slide.id: slide.split for slide in opened(folder).slides} == {
        "a": "train",
        "b": "train",
        "c": "val",
        "d": "test",
    }


def test_a_missing_table_of_splits_says_how_to_make_one(folder):
    with (folder / "cohort.toml").open("a") as file:
        file.write('[splits]\ntable = "splits.csv"\n')
    error(folder, "no table of splits .*splits.csv; `slimbench data split` makes one")
    assert open_file(folder / "cohort.toml", splits=False).cohort is not None


def test_splits_and_labels_from_other_tables(folder):
    (folder / "splits.csv").write_text("slide_id,split\na,test\nb,test\nc,train\nd,\n")
    (folder / "clinical.csv").write_text("PATIENT,SUBTYPE\np1,x\np2,y\n")
    change(folder / "cohort.toml", 'label = "label"', "")
    with (folder / "cohort.toml").open("a") as file:
        file.write('[splits]\ntable = "splits.csv"\n')
        file.write('[labels]\ntable = "clinical.csv"\npatient = "PATIENT"\nlabel = "SUBTYPE"\n')
    cohort = opened(folder)
    assert {s.id: (s.split, s.label) for s in cohort.slides} == {
        "a": ("test", "x"),
        "b": ("test", "x"),
        "c": ("train", "y"),
    }
    assert cohort.dropped == {"no split": 1}


@pytest.mark.parametrize(
    ("section", "table"),
    [
        ('[reports]\ntable = "reports.csv"', "slide_id,text\na,one\nb,one\nc,two\nd, \nz,other\n"),
        ('[reports]\ntable = "reports.csv"\npatient = "case_id"', "case_id,text\np1,one\np2,two\n"),
        ('[reports]\ntable = "reports.csv"', "case_id,text\np1,one\np2,two\n"),
        ('[reports]\ntable = "reports.csv"\nslide = "id"\ntext = "t"', "id,t\na.svs,one\nb.svs,one\nc,two\n"),
    ],
)
def test_reports_join_by_slide_or_patient(folder, section, table):
    (folder / "reports.csv").write_text(table)
    with (folder / "cohort.toml").open("a") as file:
        file.write(f'{section}\nsource = "condensed"\n')
    cohort = opened(folder)
    assert {s.id: s.report for s in cohort.slides} == {"a": "one", "b": "one", "c": "two", "d": None}
    assert cohort.captions == "condensed"
    joined = next(join for join in cohort.joins if join.what == "reports")
    assert (joined.matched, joined.total, joined.first_without) == (3, 4, "d")
    assert str(joined).startswith("reports: 3 of 4 slides matched")


def test_histgen_annotation_gives_slides_splits_and_reports(folder, write_trident):
    names = {
        split: f"TCGA-A7-A0C{number}-01Z-00-DX1.{UUID}"
        for number, split in enumerate(("train", "val", "test"))
    }
    for name in names.values():
        write_trident(folder / "features", name)
    annotation = {
        split: [{"id": name, "report": f"of {split}", "image_path": [name]}] for split, name in names.items()
    }
    (folder / "annotation.json").write_text(json.dumps(annotation))
    (folder / "cohort.toml").write_text(
        'features = "features"\n[slides]\ntable = "annotation.json"\nslide = "id"\n'
        '[reports]\ntable = "annotation.json"\nslide = "id"\ntext = "report"\n'
    )
    cohort = opened(folder)
    assert {s.split: s.report for s in cohort.slides} == {split: f"of {split}" for split in names}
    assert cohort.classes == () and cohort.slides[0].patient.startswith("TCGA-A7-A0C")


def test_patho_bench_fold_and_config(folder):
    table = (
        "case_id\tslide_id\tsubtype\tfold_0\np1\ta\t1\ttrain\np1\tb\t1\ttrain\np2\tc\t0\ttest\np3\td\t0\t-1\n"
    )
    (folder / "k=all.tsv").write_text(table)
    (folder / "config.yaml").write_text(
        "task_col: subtype\nlabel_dict: {0: LUSC, 1: LUAD}\nsample_col: case_id\n"
    )
    (folder / "cohort.toml").write_text(
        'features = "features"\nclasses = "config.yaml"\n'
        '[slides]\ntable = "k=all.tsv"\nlabel = "subtype"\nsplit = "fold_0"\n'
    )
    cohort = opened(folder)
    assert cohort.classes == ("LUSC", "LUAD")
    assert {s.id: s.label for s in cohort.slides} == {"a": "LUAD", "b": "LUAD", "c": "LUSC"}
    assert cohort.dropped == {"no split": 1}


def test_titan_config_gives_order_and_prompts(folder):
    (folder / "task.yaml").write_text(
        "label_dict: {LUSC: 0, LUAD: 1, GBM: 2}\nprompts:\n  LUSC: [squamous cell, LUSC]\n  LUAD: [adeno]\n  GBM: [g]\n"
    )
    with (folder / "cohort.toml").open("a") as file:
        file.write('[prompts]\nfile = "task.yaml"\ntemplates = ["a slide of CLASSNAME."]\n')
    change(folder / "cohort.toml", 'features = "features"', 'features = "features"\nclasses = "task.yaml"')
    cohort = opened(folder)
    assert cohort.classes == ("LUSC", "LUAD", "GBM")
    assert cohort.prompts.names["LUSC"] == ("squamous cell", "LUSC")
    assert cohort.prompts.templates == ("a slide of CLASSNAME.",)


def test_conch_prompts(folder):
    content = {
        "0": {
            "classnames": {"LUAD": ["adeno"], "LUSC": "squamous"},
            "templates": ["CLASSNAME.", "a CLASSNAME"],
        }
    }
    (folder / "p.json").write_text(json.dumps(content))
    with (folder / "cohort.toml").open("a") as file:
        file.write('[prompts]\nfile = "p.json"\n')
    prompts = opened(folder).prompts
    assert prompts.names == {"LUAD": ("adeno",), "LUSC": ("squamous",)} and len(prompts.templates) == 2


def test_names_that_look_missing_are_names(folder):
    change(folder / "slides.csv", "LUSC", "NA")
    change(folder / "slides.csv", "b,p1,LUAD", "b,p1,None")
    assert opened(folder).classes == ("LUAD", "NA", "None")


def test_slides_without_label_stay(folder):
    change(folder / "slides.csv", "b,p1,LUAD", "b,p1,")
    assert {s.id: s.label for s in opened(folder).slides}["b"] is None


def test_empty_slides_are_dropped_and_counted(folder, write_trident):
    write_trident(folder / "features", "b", features=np.empty((0, 8), np.float32))
    cohort = opened(folder)
    assert [s.id for s in cohort.slides] == ["d", "a", "c"] and cohort.dropped == {"empty": 1}


def test_slides_without_features_may_be_dropped(folder):
    (folder / "features" / "b.h5").unlink()
    change(folder / "cohort.toml", "[slides]", 'missing = "drop"\n\n[slides]')
    cohort = opened(folder)
    assert len(cohort.slides) == 3 and cohort.dropped == {"no features": 1}
    assert "features: 3 of 4 slides matched; first without: b" in map(str, cohort.joins)


def test_a_record_says_what_was_joined_and_what_was_left_out(folder, tmp_path):
    change(folder / "cohort.toml", "[slides]", 'missing = "drop"\n[slides]')
    (folder / "features" / "a.h5").unlink()
    cell = Cell(
        encoder="mean-pool",
        reducer="none",
        rate=0,
        trained_at=0,
        seed=0,
        cohort=str(folder / "cohort.toml"),
        text="tfidf",
        recipe="tiny",
        tasks=(),
    )
    provenance = run_cell(cell, tmp_path / "out", lambda progress: None).provenance
    assert provenance["dropped"] == {"no features": 1}
    (joined,) = provenance["joins"]
    facts = {"what": "features", "matched": 3, "total": 4, "loose": 0, "unused": 0, "first_without": "a"}
    assert joined == facts


def test_ids_join_without_uuid_and_extension(folder, write_trident):
    for slide in ("x.svs", f"TCGA-AA-0001-01Z-00-DX1.{UUID.lower()}", "TCGA-AA-0002-01Z-00-DX1"):
        write_trident(folder / "features", slide)
    (folder / "slides.csv").write_text(
        "slide_id,case_id,label,split\nx,p1,A,train\n"
        f"TCGA-AA-0001-01Z-00-DX1.{UUID},p2,A,val\nTCGA-AA-0002-01Z-00-DX1.{UUID},p3,B,test\n"
    )
    cohort = opened(folder)
    assert len(cohort.slides) == 3
    assert cohort.patches(f"TCGA-AA-0001-01Z-00-DX1.{UUID}").features.shape == (12, 8)
    assert "features: 3 of 3 slides matched, 3 of them without extension or UUID" in str(cohort.joins[-1])


# what is wrong, one line each


@pytest.mark.parametrize(
    ("old", "new", "pattern"),
    [
        ("features =", "feature =", "has no key 'feature'; did you mean features"),
        ("label =", "lable =", r"\[slides\] has no key 'lable'; did you mean table or label"),
        ('table = "slides.csv"', "", r"\[slides\] names no table"),
        ('label = "label"', 'label = "lable"', "slides.csv: no column 'lable'; did you mean label"),
        ('label = "label"', "label = 3", r"\[slides\] label = 3: input should be a valid string"),
        ('"slides.csv"', '"slide.csv"', "no table .*slide.csv"),
        ('"features"', '"nowhere"', "no features at .*nowhere"),
        ("[slides]", "[slides", "cohort.toml: .*line"),
        ('label = "label"', 'label = "label"\ntrain = "t.csv"', "names both `table` and `train`"),
        ("[slides]", 'missing = "ignore"\n[slides]', "missing = 'ignore': input should be 'error' or 'drop'"),
        ("[slides]", 'classes = ["LUAD"]\n[slides]', "slide c has label 'LUSC', which is not among the 1 classes"),
        ("[slides]", 'format = "clan"\n[slides]', "no feature format 'clan'; did you mean clam"),
        ("[slides]", '[prompts]\nnames = { LUAD = ["a"] }\n[slides]', "class 'LUSC' has no name in the prompts"),
        ("[slides]", '[prompts]\ntemplates = ["a"]\n[slides]', "takes `file`, or `names`"),
        ("[slides]", '[defaults]\nencoders = "slim"\n[slides]', r"\[defaults\] has no key 'encoders'; did you mean encoder"),
    ],
)  # fmt: skip
def test_a_wrong_cohort_file_is_one_line(folder, old, new, pattern):
    change(folder / "cohort.toml", old, new)
    assert str(folder) in error(folder, pattern) or "format" in pattern


@pytest.mark.parametrize(
    ("old", "new", "pattern"),
    [
        ("b,p1,", "a,p1,", "slides.csv row 3: slide a stands already in .*slides.csv row 2"),
        ("c,p2,", "c,p1,", r"slides.csv row 4: patient p1 is in val \(slide c\) and in train \(slide a\)"),
        ("c,p2,LUSC,val", "c,p2,LUSC,valid", "slide c is in split 'valid'; expected train, val, test"),
        ("c,p2,LUSC", "c,p2,luad", "classes 'LUAD' and 'luad' differ only in case"),
        ("c,p2,LUSC", "c,p2,LUAD ", "classes 'LUAD' and 'LUAD ' differ only in case or spaces"),
        ("c,p2,", "c,,", "slides.csv row 4: no patient id"),
        ("c,p2,", ",p2,", "slides.csv row 4: no slide id"),
        ("c,p2,", "../c,p2,", "slide id '../c' is a path"),
        ("c,p2,", "-rf,p2,", "slide id '-rf' begins with a dash"),
        ("c,p2,", "c ,p2,", "slide id 'c ' begins or ends with a space"),
        ("c,p2,", "e,p2,", 'slides.csv row 4: slide e has no features in features; .* missing = "drop"'),
        ("case_id", "patient", "slides.csv: no column `case_id`; name the patients' column"),
    ],
)
def test_a_wrong_table_is_one_line(folder, old, new, pattern):
    change(folder / "slides.csv", old, new)
    error(folder, pattern)


def test_semicolons_are_named(folder):
    (folder / "slides.csv").write_text(SLIDES.replace(",", ";"))
    error(folder, "columns are separated by semicolons; expected commas")


@pytest.mark.parametrize(("encoding", "guess"), [("latin-1", "Latin-1"), ("utf-16", "UTF-16")])
def test_another_encoding_is_named(folder, encoding, guess):
    (folder / "slides.csv").write_bytes(SLIDES.replace("p3", "Müller").encode(encoding))
    error(folder, f"byte .* is not UTF-8 \\({guess}, perhaps\\)")


def test_a_byte_order_mark_is_no_column(folder):
    (folder / "slides.csv").write_bytes(SLIDES.encode("utf-8-sig"))
    assert len(opened(folder).slides) == 4


def test_an_empty_table_is_named(folder):
    (folder / "slides.csv").write_text("")
    error(folder, "slides.csv: not a table")
    (folder / "slides.csv").write_text("slide_id,case_id,label,split\n")
    error(folder, "no slide is left")


def test_another_width_names_both(folder, write_trident):
    write_trident(folder / "features", "c", dim=9)
    error(folder, r"c.h5: slide c has width 9, the cohort has 8 \(slide a\)")


def test_nan_is_found_at_the_read(folder, write_trident):
    rows = np.zeros((5, 8), np.float32)
    rows[3, 1] = np.nan
    write_trident(folder / "features", "c", features=rows)
    error(folder, "c.h5: slide c has NaN or infinite features in row 3")


def test_a_damaged_file_is_named_before_anything_runs(folder):
    (folder / "features" / "c.h5").write_bytes(b"no")
    with pytest.raises(CohortError, match=r"c.h5: damaged HDF5 file"):
        opened(folder)


def test_two_reports_for_a_slide_are_an_error(folder):
    (folder / "reports.csv").write_text("slide_id,text\na,one\na,two\n")
    with (folder / "cohort.toml").open("a") as file:
        file.write('[reports]\ntable = "reports.csv"\n')
    error(folder, "reports.csv row 3: slide_id a has another text")


def test_a_join_that_finds_nothing_shows_both_kinds_of_ids(folder):
    (folder / "reports.csv").write_text("slide_id,text\nA-1,one\n")
    with (folder / "cohort.toml").open("a") as file:
        file.write('[reports]\ntable = "reports.csv"\n')
    error(folder, r"none of its 1 slide_id is in the slides table \(first there: A-1, first here: a\)")


def test_every_error_is_collected_and_the_rest_is_still_opened(folder):
    change(folder / "slides.csv", "c,p2,LUSC,val", "c,p1,luad,val\nc,p2,LUSC,val\ne,p9,LUAD,train")
    result = open_file(folder / "cohort.toml")
    assert [f.subject for f in result.findings if f.severity == "error"] == [
        "duplicate ids",
        "leakage",
        "labels",
        "missing features",
    ]
    assert len(result.cohort.slides) == 4


# the pieces


def test_finder_does_not_confuse_slides_that_share_a_stem():
    other = UUID.replace("0DA1", "1DA1")
    finder = Finder([f"s.{UUID}", f"s.{other}", "t"], "table.csv")
    assert finder.find(f"s.{UUID.lower()}") == f"s.{UUID}"
    assert finder.find(f"t.{UUID}") == "t"
    assert finder.find("u") is None
    with pytest.raises(CohortError, match="slide s fits both"):
        finder.find("s")


def test_tcga_barcodes_name_their_patient():
    assert tcga_patient(f"TCGA-A7-A0CJ-01Z-00-DX2.{UUID}") == "TCGA-A7-A0CJ"
    assert tcga_patient("CPTAC-1") is None and tcga_patient("TCGA-A7-A0CJX") is None


@pytest.mark.parametrize(
    "name", ["..", "a/b", "a\\b", "/abs", "a\0", "a\nb", "x" * 201, "e\u0301", " a", "-rf"]
)
def test_ids_that_are_no_file_names_are_refused(name):
    assert bad_id(name) is not None


@pytest.mark.parametrize("name", ["TCGA-1.2", "é", "<script>", "50%", "a b", "..a", "x" * 200])
def test_odd_ids_are_ids(name):
    assert bad_id(name) is None


def test_relative_paths_are_relative_to_the_file(folder, monkeypatch):
    monkeypatch.chdir("/")
    assert len(opened(folder).slides) == 4


def test_a_missing_cohort_file_says_how_to_make_one(tmp_path):
    with pytest.raises(CohortError, match=r"no cohort file .*nope.toml.*data init"):
        open_cohort(str(tmp_path / "nope.toml"))
    (tmp_path / "cohort.txt").write_text("")
    with pytest.raises(CohortError, match=r"ends in .toml, .yaml or .yml"):
        read_cohort_file(tmp_path / "cohort.txt")


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(CohortError, match=r"no cohort is called 'digts'; did you mean digits"):
        open_cohort("digts")


# published tables


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data")
def test_real_tcga_slides_with_titans_tables(tmp_path):
    hipt, titan = SHARED / "hipt-tcga", SHARED / "TITAN"
    (tmp_path / "cohort.toml").write_text(f"""
name = "tcga-ot-hipt"
features = ["{hipt}/val.npz", "{hipt}/test.npz"]
missing = "drop"
classes = "{titan}/config_tcga-ot.yaml"

[slides]
train = "{titan}/tcga-ot_train.csv"
val = "{titan}/tcga-ot_val.csv"
test = "{titan}/tcga-ot_test.csv"
label = "OncoTreeCode"
site = "source_site"

[reports]
table = "{hipt}/reports.csv"
source = "condensed"

[prompts]
file = "{titan}/config_tcga-ot.yaml"
""")
    cohort = opened(tmp_path)
    assert (len(cohort.split("val")), len(cohort.split("test"))) == (1440, 1241)
    assert len(cohort.classes) == 46 and cohort.classes[0] == "AASTR" and cohort.dim == 192
    assert sum(slide.report is not None for slide in cohort.split("test")) == 24 + 555
    assert cohort.dropped == {"no features": 11186 - 1440 - 1241}
    with np.load(hipt / "test.npz") as file:
        labels = dict(zip(file["slide_id"].tolist(), file["oncotree"].tolist(), strict=True))
        first = file["slide_id"][0]
        rows = file["features"][: file["offsets"][1]]
    assert {slide.id: slide.label for slide in cohort.split("test")} == labels
    np.testing.assert_array_equal(cohort.patches(str(first)).features, rows)


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data")
@pytest.mark.parametrize(("label", "classes"), [("diagnosis", 30), ("diagnosis_group", 12)])
def test_panthers_ebrains_tables(tmp_path, label, classes):
    panther = SHARED / "PANTHER"
    ids = [
        name
        for split in ("train", "val", "test")
        for name in read_table(panther / f"ebrains_{split}.csv").column("slide_id")
    ]
    np.savez(
        tmp_path / "all.npz",
        features=np.ones((len(ids), 4), np.float16),
        offsets=np.arange(len(ids) + 1),
        slide_id=np.array(ids),
    )
    (tmp_path / "cohort.toml").write_text(f"""
features = "all.npz"
[slides]
train = "{panther}/ebrains_train.csv"
val = "{panther}/ebrains_val.csv"
test = "{panther}/ebrains_test.csv"
label = "{label}"
""")
    cohort = opened(tmp_path)
    assert len(cohort.slides) == 2319 and len(cohort.classes) == classes
