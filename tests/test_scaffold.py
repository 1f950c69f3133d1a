"""`slimbench new reducer`: the package it writes installs, is found, and keeps every promise."""

from __future__ import annotations

import subprocess
import tomllib
import venv
from pathlib import Path
from site import getsitepackages

import pytest

from slimbench.conformance import check_reducer
from slimbench.errors import UsageError
from slimbench.runs.store import Store
from slimbench.scaffold import new_reducer


def test_the_new_reducer_keeps_every_promise(tmp_path: Path) -> None:
    files = {path.name: path for path in new_reducer("far-patches", tmp_path)}
    spec = f"{files['slimbench_far_patches.py']}:FarPatches"
    assert [str(promise) for promise in check_reducer(spec) if not promise.kept] == []


def test_its_entry_point_names_its_class(tmp_path: Path) -> None:
    new_reducer("far-patches", tmp_path)
    project = tomllib.loads((tmp_path / "far-patches" / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["slimbench.reducers"] == {
        "far-patches": "slimbench_far_patches:FarPatches"
    }
    assert (project["name"], project["dependencies"]) == ("slimbench-far-patches", ["slimbench"])


@pytest.mark.parametrize(
    ("name", "message"),
    [("Far", "no name for a plugin"), ("a--b", "no name"), ("../x", "no name"), ("tome", "there already")],
)
def test_a_name_that_cannot_be_is_refused(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        new_reducer(name, tmp_path)
    assert [*tmp_path.iterdir()] == []


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "far-patches").mkdir()
    with pytest.raises(UsageError, match="exists"):
        new_reducer("far-patches", tmp_path)


@pytest.mark.slow
def test_the_package_installs_in_a_new_environment_is_listed_checked_tested_and_swept(tmp_path: Path) -> None:
    new_reducer("far-patches", tmp_path)
    package, environment = tmp_path / "far-patches", tmp_path / "environment"
    venv.create(environment, with_pip=True, symlinks=True)
    (site,) = environment.glob("lib/python*/site-packages")
    ours = "; ".join(f"site.addsitedir({folder!r})" for folder in getsitepackages())
    (site / "beside_slimbench.pth").write_text(f"import site; {ours}\n")

    def python(*words: str) -> str:
        command = [str(environment / "bin" / "python"), "-m", *words]
        done = subprocess.run(command, cwd=package, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    python("pip", "install", "--no-deps", "--no-build-isolation", "--quiet", ".")
    assert (site / "slimbench_far_patches.py").is_file()
    assert "far-patches" in python("slimbench", "list", "reducers")
    assert "all kept" in python("slimbench", "check", "reducer", "far-patches")
    assert "passed" in python("pytest", "-q", "-p", "no:cacheprovider")
    words = "--rates 0.9 --no-baselines --task saliency --recipe tiny:epochs=1 --out swept"
    python("slimbench", "sweep", "--reducer", "far-patches", *words.split())
    (record,) = Store(package / "swept").scan().records.values()
    assert (record.status, record.cell.reducer) == ("ok", "far-patches")
    assert record.provenance["plugins"] == {"slimbench-far-patches": "0.1.0"}
