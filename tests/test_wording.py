"""slimbench's own zero-shot wording: every class has names, and no name stands for two."""

from itertools import combinations
from pathlib import Path

import pytest

from slimbench.cohorts import open_cohort
from slimbench.cohorts.init import init
from slimbench.cohorts.prompts import read_label_dict, shipped_for, shipped_prompts
from slimbench.cohorts.tables import read_table
from slimbench.errors import CohortError
from slimbench.tasks.ebrains import DIAGNOSES, GROUPS
from slimbench.tasks.tcga_oncotree import CODES

pytestmark = pytest.mark.usefixtures("own_cache")
SHARED = Path(__file__).parent.parent.parent / "shared" / "data"
CLASSES = [
    pytest.param("tcga-ot", CODES, id="codes"),
    pytest.param("ebrains", DIAGNOSES, id="diagnoses"),
    pytest.param("ebrains", tuple(GROUPS), id="groups"),
]


@pytest.mark.parametrize(("wording", "classes"), CLASSES)
def test_every_class_has_three_to_six_names_of_its_own(wording, classes):
    names = shipped_prompts(wording, "").names
    assert {name: len(names[name]) for name in classes if not 3 <= len(set(names[name])) <= 6} == {}
    plain = {label: {" ".join(name.lower().split()) for name in names[label]} for label in classes}
    assert {(a, b): plain[a] & plain[b] for a, b in combinations(classes, 2) if plain[a] & plain[b]} == {}


def test_a_wording_has_no_class_that_its_benchmark_does_not_have():
    assert set(shipped_prompts("tcga-ot", "").names) == set(CODES)
    assert set(shipped_prompts("ebrains", "").names) == {*DIAGNOSES, *GROUPS}


@pytest.mark.parametrize("wording", ["tcga-ot", "ebrains"])
def test_twenty_templates_are_different_sentences_with_one_place_for_the_name(wording):
    templates = shipped_prompts(wording, "").templates
    assert len(set(templates)) == 20
    assert all(template.count("CLASSNAME") == 1 and template.endswith(".") for template in templates)


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data")
def test_every_class_of_the_published_tables_has_names():
    codes, _ = read_label_dict(SHARED / "TITAN" / "config_tcga-ot.yaml")
    assert shipped_for(codes) == "tcga-ot"
    tables = [read_table(SHARED / "PANTHER" / f"ebrains_{split}.csv") for split in ("train", "val", "test")]
    for column, count in (("diagnosis", 30), ("diagnosis_group", 12)):
        classes = {cell for table in tables for cell in table.column(column)}
        assert len(classes) == count and shipped_for(classes) == "ebrains"


def test_a_wording_is_found_for_classes_that_it_has_all_of():
    assert shipped_for(["LUAD", "LUSC"]) == "tcga-ot"
    assert shipped_for(["Meningiomas", "Ependymal Tumours "]) == "ebrains"
    assert shipped_for(["LUAD", "Ependymoma"]) is None and shipped_for(["lung"]) is None
    assert shipped_for([]) is None


@pytest.fixture
def folder(tmp_path, write_trident):
    """A cohort of four slides; `classes` are put in by `study`."""
    for name in "abcd":
        write_trident(tmp_path / "features", name)
    return tmp_path


def study(folder: Path, text: str, classes: tuple[str, str] = ("LUAD", "UM")):
    rows = [
        f'{name},p{name},"{classes[n % 2]}",{split}'
        for n, (name, split) in enumerate(zip("abcd", ("train", "train", "test", "test"), strict=True))
    ]
    (folder / "slides.csv").write_text("\n".join(["slide_id,case_id,label,split", *rows]) + "\n")
    (folder / "study.toml").write_text(text + '[slides]\ntable = "slides.csv"\nlabel = "label"\n')
    return open_cohort(str(folder / "study.toml"))


def test_a_cohort_file_asks_for_a_wording_by_its_name_and_gets_its_own_classes(folder):
    cohort = study(folder, 'features = "features"\nprompts = "tcga-ot"\n')
    assert set(cohort.prompts.names) == {"LUAD", "UM"} and "uveal melanoma" in cohort.prompts.names["UM"]
    assert cohort.prompts.source == "slimbench tcga-ot" and len(cohort.prompts.templates) == 20
    assert "zero-shot" in cohort.defaults.tasks
    section = study(folder, 'features = "features"\n[prompts]\nwording = "tcga-ot"\n')
    assert section.fingerprint == cohort.fingerprint
    own = study(
        folder, 'features = "features"\n[prompts]\nwording = "tcga-ot"\ntemplates = ["seen: CLASSNAME"]\n'
    )
    assert own.prompts.templates == ("seen: CLASSNAME",) and own.fingerprint != cohort.fingerprint


def test_a_class_that_was_published_with_a_space_behind_it_finds_its_names(folder):
    classes = ("Circumscribed astrocytic gliomas ", "Meningiomas")
    cohort = study(folder, 'features = "features"\nprompts = "ebrains"\n', classes)
    assert set(cohort.prompts.names) == set(cohort.classes)
    assert all(len(names) >= 3 for names in cohort.prompts.names.values())


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ('"tcga"', r"study.toml: no wording is called 'tcga'; did you mean tcga-ot\?"),
        ('"ebrains"', r"study.toml: class 'LUAD' has no name in the prompts \(slimbench ebrains\); add one"),
        ('{ wording = "tcga-ot", file = "a.yaml" }', "one of them"),
    ],
)
def test_a_wording_that_does_not_fit_is_one_line(folder, prompts, message):
    with pytest.raises(CohortError, match=message) as caught:
        study(folder, f'features = "features"\nprompts = {prompts}\n')
    assert "\n" not in str(caught.value)


def test_init_writes_the_wording_that_fits_the_labels(folder):
    study(folder, 'features = "features"\n')
    (folder / "begun.toml").write_text(init(folder))
    assert open_cohort(str(folder / "begun.toml")).prompts.source == "slimbench tcga-ot"
    study(folder, 'features = "features"\n', ("lung", "eye"))
    assert "[prompts]" not in init(folder)
