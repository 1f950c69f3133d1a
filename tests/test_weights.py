"""Published weights and other files that plugins read: part of a cell's key by what they hold, and asked for
before anything is trained."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import slimbench
from slimbench import registry
from slimbench.cohorts.cohort import InMemoryCohort, Patches, Slide
from slimbench.errors import CheckpointError, TextError
from slimbench.files import content_hash
from slimbench.registry import Registry
from slimbench.runs.cell import identify
from slimbench.runs.record import Cell

MODEL, GIGAPATH = (
    "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract-fulltext",
    "prov-gigapath/prov-gigapath",
)


@pytest.fixture(autouse=True)
def hub(tmp_path, monkeypatch) -> Path:
    """An empty cache of the hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def downloaded(hub: Path, repository: str, files: dict[str, bytes]) -> None:
    """Lay out `files` as the hub's client does after a download."""
    model, commit = hub / f"models--{repository.replace('/', '--')}", "0" * 40
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text(commit)
    (model / "blobs").mkdir()
    snapshot = model / "snapshots" / commit
    snapshot.mkdir(parents=True)
    for name, content in files.items():
        (model / "blobs" / name).write_bytes(content)
        (snapshot / name).symlink_to(Path("..", "..", "blobs", name))


def stored(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def cohort(report: str | None = "a report") -> InMemoryCohort:
    slides = tuple(Slide(name, name, "train", 1, report=report) for name in "ab")
    features = {slide.id: Patches(np.ones((1, 4), np.float32)) for slide in slides}
    return InMemoryCohort("test", slides, (), 4, "report", "f", features)


def keys(of: InMemoryCohort | None = None, **specs: str) -> tuple[str, str]:
    """Key and training key of a cell."""
    given = {"encoder": "slim-tiny", "reducer": "none", "text": "tfidf"} | specs
    cell = Cell(rate=0, trained_at=0, seed=0, cohort="c", recipe="tiny", tasks=("linear-probe",), **given)
    identity = identify(cell, of or cohort())
    return identity.key(cell), identity.training_key(cell)


BERT = {"config.json": b"{}", "vocab.txt": b"a\nb\n", "model.safetensors": b"weights"}
ENCODER = {"slide_encoder.pth": b"weights"}


@pytest.mark.parametrize(
    ("part", "name", "argument", "repository", "files"),
    [("text", "hf", "model", MODEL, BERT), ("encoder", "gigapath", "checkpoint", GIGAPATH, ENCODER)],
)
def test_weights_are_the_same_wherever_they_lie_and_others_under_the_same_name_are_not(
    tmp_path, hub, part, name, argument, repository, files
):
    downloaded(hub, repository, files)
    here, there = stored(tmp_path / "here", files), stored(tmp_path / "there", files)
    specs = [
        name,
        f"{name}:download=true",
        *(f"{name}:{argument}={place}" for place in (repository, here, there)),
    ]
    assert len({keys(**{part: spec}) for spec in specs}) == 1
    weights = there / list(files)[-1]
    weights.write_bytes(b"Weights")
    other = keys(**{part: specs[-1]})
    assert not set(other) & set(keys(**{part: name}))
    weights.write_bytes(b"weights")
    assert keys(**{part: specs[-1]}) == keys(**{part: name})


def test_files_that_embeddings_do_not_depend_on_do_not_count(tmp_path):
    folder = stored(tmp_path / "bert", BERT)
    before = keys(text=f"hf:model={folder}")
    (folder / "README.md").write_text("new")
    assert keys(text=f"hf:model={folder}") == before
    (folder / "vocab.txt").write_text("b\na\n")
    assert keys(text=f"hf:model={folder}") != before
    assert keys(text=f"hf:model={folder},pooling=mean") != keys(text=f"hf:model={folder}")


@pytest.mark.parametrize("spec", ["mine.py:Mine:table={}", "reverse(mine.py:Mine:alpha=0.5,table={})"])
def test_a_file_that_a_strangers_argument_names_counts_by_what_it_holds(tmp_path, spec):
    paths = [tmp_path / name for name in ("a.npy", "b.npy", "c.npy")]
    for path, content in zip(paths, (b"1", b"1", b"2"), strict=True):
        path.write_bytes(content)
    a, b, c = (Registry("reducer", "slimbench.reducers").by_content(spec.format(path)) for path in paths)
    assert a == b == spec.format(content_hash(paths[0])) != c


def test_what_names_no_file_stays_as_it_is(tmp_path, monkeypatch):
    (tmp_path / "mean").mkdir()
    monkeypatch.chdir(tmp_path)
    spec = "mine.py:Mine:alpha=0.5,of=none,pooling=mean,ratio=1/2"
    assert registry.reducers.by_content(spec) == spec


def test_a_folder_counts_by_the_names_and_contents_of_its_files(tmp_path):
    one, other = stored(tmp_path / "one", BERT), stored(tmp_path / "other", BERT)
    (other / ".lock").write_text("")
    assert content_hash(one) == content_hash(other)
    (other / "vocab.txt").rename(other / "words.txt")
    assert content_hash(one) != content_hash(other)


def test_the_encoders_that_come_with_weights_are_those_whose_weights_can_be_found():
    pretrained = {
        name
        for name, plugin in registry.encoders.plugins().items()
        if getattr(plugin.load(), "pretrained", False)
    }
    assert pretrained == {
        name for name in registry.encoders.plugins() if registry.encoders.reads_weights(name)
    }


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"text": "hf"}, TextError, r"--text hf:download=true, .* --text hf:model=FOLDER, .* --text tfidf$"),
        ({"text": "hf:model=a/b"}, TextError, "--text hf:model=a/b,download=true"),
        ({"encoders": "gigapath"}, CheckpointError, "gigapath:checkpoint=PATH"),
    ],
)
def test_a_sweep_names_missing_weights_before_it_begins(tmp_path, options, error, message):
    with pytest.raises(error, match=message) as caught:
        slimbench.sweep("none", 0, out=tmp_path / "out", **options)
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_a_text_tower_that_nothing_is_aligned_with_need_not_be_there(tmp_path):
    checkpoint = stored(tmp_path / "encoder", ENCODER)
    assert keys(cohort(report=None), encoder="mean-pool", text="hf")
    assert keys(encoder=f"gigapath:checkpoint={checkpoint}", text="hf")
    with pytest.raises(TextError):
        keys(encoder="mean-pool", text="hf")


def test_a_download_that_was_interrupted_is_no_model(hub):
    downloaded(hub, MODEL, {name: content for name, content in BERT.items() if name != "model.safetensors"})
    with pytest.raises(TextError, match="download=true"):
        keys(text="hf")


def test_weights_are_looked_at_without_torch(tmp_path):
    bert, encoder = stored(tmp_path / "bert", BERT), stored(tmp_path / "encoder", ENCODER)
    code = (
        "import sys; from slimbench import registry\n"
        f"registry.text_towers.by_content('hf:model={bert}')\n"
        "try: registry.text_towers.by_content('hf:model=a/b')\n"
        "except Exception as error: print(type(error).__name__)\n"
        f"registry.encoders.by_content('gigapath:checkpoint={encoder}')\n"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert printed.stdout.split() == ["TextError", "[]"]
