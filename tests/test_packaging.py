"""What is installed is what is in the repository, whichever way it is installed."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import slimbench

ROOT = Path(__file__).parent.parent
ROOMS = ("reducers", "encoders", "tasks", "results")

pytestmark = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs the repository's list of files")


def tracked() -> set[str]:
    """Files of the package as the repository has them, by their name inside a wheel."""
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    present = {name for name in names if (ROOT / name).is_file()}
    inside = {name for name in present if name.startswith("slimbench/")}
    return inside | {
        f"slimbench/{name}" for name in present if name.startswith(tuple(f"{room}/" for room in ROOMS))
    }


def build(kind: str, source: Path, out: Path) -> Path:
    for module in ("build", "hatchling"):
        pytest.importorskip(
            module, reason=f"{module} is not installed; it builds the package without a network"
        )
    command = [
        sys.executable,
        "-m",
        "build",
        f"--{kind}",
        "--no-isolation",
        "--outdir",
        str(out),
        str(source),
    ]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (made,) = out.iterdir()
    return made


def in_wheel(path: Path) -> set[str]:
    with zipfile.ZipFile(path) as wheel:
        return {name for name in wheel.namelist() if not name.partition("/")[0].endswith(".dist-info")}


def test_the_rooms_at_the_top_are_the_rooms_of_the_package():
    for room in ROOMS:
        link = ROOT / "slimbench" / room
        assert link.is_symlink() and link.resolve() == ROOT / room, room


def test_the_running_package_is_typed_and_has_its_rooms():
    folder = Path(slimbench.__file__).parent
    assert (folder / "py.typed").is_file()
    assert all((folder / room / "__init__.py").is_file() for room in ROOMS)


def test_a_wheel_holds_every_file_of_the_repository_and_no_other(tmp_path):
    assert in_wheel(build("wheel", ROOT, tmp_path)) == tracked()


def test_a_wheel_made_from_the_source_archive_is_the_same(tmp_path):
    archive = build("sdist", ROOT, tmp_path / "sdist")
    with tarfile.open(archive) as opened:
        opened.extractall(tmp_path / "source", filter="data")
    (source,) = (tmp_path / "source").iterdir()
    assert in_wheel(build("wheel", source, tmp_path / "wheel")) == tracked()
    assert {"README.md", "LICENSE", "tests", "pyproject.toml"} <= {path.name for path in source.iterdir()}
