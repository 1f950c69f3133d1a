"""Where plugins are found, by name, by file and in other packages."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest

import slimbench
from slimbench import registry
from slimbench.errors import PluginError, UsageError
from slimbench.registry import Registry, _sources
from slimbench.spec import Spec, typed_arguments

ROOMS = (registry.reducers, registry.encoders, registry.tasks, registry.text_towers)


@pytest.fixture
def package(tmp_path: Path, monkeypatch):
    """Puts a distribution with entry points on the path: `package("far", far="far_reducer:Far")`."""

    def make(name: str, group: str = "slimbench.reducers", code: str = "", **entries: str) -> None:
        info = tmp_path / f"{name}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
        lines = [f"{key.replace('_', '-')} = {value}" for key, value in entries.items()]
        (info / "entry_points.txt").write_text("\n".join([f"[{group}]", *lines]))
        if code:
            (tmp_path / f"{name}_reducer.py").write_text(code)
        monkeypatch.syspath_prepend(str(tmp_path))

    return make


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.kind)
def test_every_file_of_a_room_is_in_its_dictionary_or_serves_others(room: Registry):
    module = __import__(room.room, fromlist=["BUILT_INS"])
    assert module.__file__ is not None
    folder = Path(module.__file__).parent
    listed = {target.partition(":")[0].rpartition(".")[2] for target in module.BUILT_INS.values()}
    files = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    everything = [path.read_text() for path in Path(slimbench.__file__).parent.rglob("*.py")]
    everything += [path.read_text() for path in folder.glob("*.py")]
    serving = {
        name for name in files if any(f"from {room.room}.{name} import" in text for text in everything)
    }
    assert listed <= files
    assert files - listed - serving == set(), "a plugin that nobody can name"


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.kind)
def test_every_built_in_can_be_imported(room: Registry):
    for plugin in room.plugins().values():
        assert callable(plugin.load()), plugin.name


@pytest.mark.parametrize(
    ("text", "name", "args"),
    [
        ("tome", "tome", {}),
        ("tome-local:window=256", "tome-local", {"window": "256"}),
        (" a : x = 1 , y = 2 ", "a", {"x": "1", "y": "2"}),
        ("dir/mine.py:Mine", "dir/mine.py:Mine", {}),
        ("mine.py:Mine:alpha=0.5,b=c", "mine.py:Mine", {"alpha": "0.5", "b": "c"}),
        ("gigapath:weights=/a/b.pth", "gigapath", {"weights": "/a/b.pth"}),
    ],
)
def test_a_spec_is_a_name_and_arguments(text, name, args):
    spec = Spec.parse(text)
    assert (spec.name.strip(), dict(spec.args)) == (name, args)
    assert Spec.parse(str(spec)) == spec


@pytest.mark.parametrize(
    "text", ["mine.py", "mine.py:", "mine.py:alpha=1", "a:b", "a:=1", "reverse(cropr", "reverse(a)b"]
)
def test_a_spec_that_means_nothing_is_refused(text):
    with pytest.raises(UsageError):
        Spec.parse(text)


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(UsageError, match="no reducer is called 'tom'; did you mean tome"):
        registry.reducers.find("tom")
    with pytest.raises(UsageError, match=r"known: .*cropr"):
        registry.reducers.find("qqqqqqq")


def test_another_package_adds_a_plugin(package):
    package("far", code="class Far:\n    def __init__(self, dim): self.dim = dim\n", far="far_reducer:Far")
    plugin = registry.reducers.plugins()["far"]
    assert plugin.package == "far 1.2"
    assert registry.reducers.build("far", dim=3).dim == 3
    assert "cropr" in registry.reducers.plugins()


def test_a_name_taken_twice_names_both_packages(package):
    package("thief", cropr="thief_reducer:Mine")
    with pytest.raises(
        PluginError, match=r"'cropr' is defined twice, by slimbench \S+ and by thief 1\.2; uninstall"
    ):
        registry.reducers.plugins()


def test_a_plugin_that_cannot_be_imported_hurts_only_who_asks_for_it(package):
    package("sick", code="raise RuntimeError('no weights')", sick="sick_reducer:Sick")
    assert registry.reducers.build("cropr", dim=4) is not None
    with pytest.raises(
        PluginError, match=r"'sick' \(sick 1\.2\) cannot be imported.*RuntimeError: no weights"
    ):
        registry.reducers.find("sick").load()


def test_a_class_in_a_file_is_a_plugin(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("class Mine:\n    def __init__(self, dim, alpha: float = 1.0): self.alpha = alpha\n")
    assert registry.reducers.build(f"{path}:Mine:alpha=0.5", dim=3).alpha == 0.5
    first = registry.reducers.find(f"{path}:Mine").code_hash()
    path.write_text(path.read_text() + "# changed\n")
    assert registry.reducers.find(f"{path}:Mine").code_hash() != first
    with pytest.raises(UsageError, match="no file"):
        registry.reducers.find("absent.py:Mine")
    with pytest.raises(PluginError, match="AttributeError"):
        registry.reducers.build(f"{path}:Other", dim=3)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("count=3", 3),
        ("share=0.5", 0.5),
        ("on=true", True),
        ("on=False", False),
        ("word=a", "a"),
        ("maybe=none", None),
        ("maybe=4", 4),
        ("many=1+2+3", (1, 2, 3)),
        ("kind=b", "b"),
    ],
)
def test_arguments_become_what_the_signature_says(argument, value):
    found = typed_arguments(_typed, Spec.parse(f"x:{argument}"))
    assert found == {argument.partition("=")[0]: value} and type(next(iter(found.values()))) is type(value)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("count=3.5", "x: count=3.5 is not a whole number"),
        ("share=half", "x: share=half is not a number"),
        ("on=yes", "x: on=yes is not true or false"),
        ("kind=c", "x: kind=c is not one of a, b"),
        ("colour=red", "x takes no argument 'colour'; it takes count, share"),
    ],
)
def test_an_argument_of_another_kind_is_refused(argument, message):
    with pytest.raises(UsageError, match=message):
        typed_arguments(_typed, Spec.parse(f"x:{argument}"))


def _typed(
    count: int = 0,
    share: float = 0.0,
    on: bool = False,
    word: str = "",
    maybe: int | None = 1,
    many: tuple[int, ...] = (),
    kind: Literal["a", "b"] = "a",
) -> None: ...


def test_finding_plugins_imports_none_of_them():
    code = (
        "import sys; from slimbench import registry\n"
        "for room in (registry.reducers, registry.encoders, registry.tasks, registry.text_towers):\n"
        "    room.plugins(); [plugin.code_hash() for plugin in room.plugins().values()]\n"
        "print('torch' in sys.modules, [name for name in sys.modules if name.startswith('slimbench.reducers.')])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "False []\n"


def test_an_encoders_code_hash_covers_the_kernels_it_imports() -> None:
    covered = set(_sources("slimbench.encoders.slim", {}))
    assert {"slimbench.encoders.slim", "slimbench.encoders.dilated_attention"} <= covered
    assert "slimbench.encoders.attention_rows" in covered and "slimbench.encoders.gigapath" not in covered
    assert all(module.startswith("slimbench.encoders.") for module in covered)


CHANGED = """
import sys
from slimbench import registry

def hashes(): return {name: plugin.code_hash() for name, plugin in registry.tasks.plugins().items()}

before = hashes()
with open(sys.argv[1], "a") as file:
    file.write("# changed")
after = hashes()
print(*(name for name in before if before[name] != after[name]))
print("torch" in sys.modules, file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("file", "changed"),
    [
        ("statistics/logistic.py", {"linear-probe", "few-shot", "tcga-oncotree", "ebrains"}),
        ("statistics/retrieval.py", {"retrieval"}),
        ("statistics/intervals.py", {"linear-probe", "retrieval", "saliency", "efficiency"}),
        ("tasks/classification.py", {"linear-probe", "zero-shot", "knn", "ebrains"}),
        ("measure/counters.py", {"efficiency"}),
        ("statistics/paired.py", set()),
    ],
)
def test_a_changed_file_changes_the_code_hash_of_the_tasks_that_compute_with_it(tmp_path, file, changed):
    copy = shutil.copytree(Path(slimbench.__file__).parent, tmp_path / "slimbench")
    done = subprocess.run(
        [sys.executable, "-c", CHANGED, str(copy / file)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        check=True,
        capture_output=True,
        text=True,
    )
    found, others = set(done.stdout.split()), {"linear-probe", "retrieval", "saliency", "efficiency"}
    assert changed <= found and not (others - changed) & found
    assert done.stderr == "False\n", "hashing imported torch"


def test_a_strangers_code_hash_covers_what_its_file_or_its_package_computes_with(package, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("import slimbench\nfrom slimbench.statistics import means\nclass Mine: pass\n")
    assert "slimbench.statistics.intervals" in _sources(str(path), {})
    (tmp_path / "near" / "deep").mkdir(parents=True)
    (tmp_path / "near" / "__init__.py").write_text("raise RuntimeError('imported')")
    (tmp_path / "near" / "deep" / "task.py").write_text("from ..sums import add\nclass Near: pass\n")
    (tmp_path / "near" / "sums.py").write_text("from slimbench.statistics.means import Z\nimport json\n")
    package("near", near="near.deep.task:Near")
    covered = _sources("near.deep.task", {})
    assert {"near.deep.task", "near.sums", "slimbench.statistics.means"} <= set(covered)
    assert "json" not in covered
    before = registry.reducers.find("near").code_hash()
    (tmp_path / "near" / "sums.py").write_text("def add(): ...\n")
    assert registry.reducers.find("near").code_hash() != before


def test_a_file_that_is_no_python_has_a_code_hash_and_cannot_be_loaded(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("class Mine(")
    assert len(registry.tasks.find(f"{path}:Mine").code_hash()) == 16
    with pytest.raises(PluginError, match="SyntaxError"):
        registry.tasks.build(f"{path}:Mine")
