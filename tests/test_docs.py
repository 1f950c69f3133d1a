"""The docs are true: every Python block runs, in order, in one folder; a block that begins with the comment
`# name.py` is also saved under that name, as the page tells its reader to do. Every cohort file is one, and the
page on cohorts names every key, every format and every finding."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

import slimbench.cohorts
from slimbench.cohorts.config import CohortFile
from slimbench.cohorts.readers import FORMATS

DOCS = Path(__file__).parent.parent / "docs"
PAGES = sorted(DOCS.glob("*.md"))


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(
        rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )


def save(code: str, folder: Path) -> None:
    named = re.match(r"# (\w+\.py)\n", code)
    if named:
        (folder / named[1]).write_text(code, encoding="utf-8")


@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.name
)
def test_the_python_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    namespace: dict[str, object] = {"__name__": page.stem}
    for number, code in enumerate(blocks(page, "python"), start=1):
        save(code, tmp_path)
        exec(compile(code, f"{page.name}, block {number}", "exec"), namespace)  # noqa: S102  (our own docs)


@pytest.mark.parametrize(("page", "lines"), [("add-a-reducer.md", 15), ("add-a-task.md", 25)])
def test_what_a_page_writes_first_is_short(page: str, lines: int) -> None:
    first = blocks(DOCS / page, "python")[0]
    assert len(first.splitlines()) < lines


@pytest.mark.slow
@pytest.mark.parametrize("name", ["add-a-reducer.md", "add-a-task.md"])
def test_the_commands_of_a_page_work(name: str, tmp_path: Path) -> None:
    page, target = DOCS / name, tmp_path / "installed"
    for code in blocks(page, "python"):
        save(code, tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(target)}
    for command in "".join(blocks(page, "console")).splitlines():
        words = command.split()
        if words[0] == "pip":
            options = ["install", "--no-deps", "--no-build-isolation", "--quiet", "--target", str(target)]
            words = [sys.executable, "-m", "pip", *options, words[-1]]
        else:
            words = [sys.executable, "-m", *words]
        done = subprocess.run(
            words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


COHORTS = DOCS / "cohorts.md"
COHORT_FILES = [
    (page.name, text) for page in (COHORTS, DOCS.parent / "README.md") for text in blocks(page, "toml")
]


@pytest.mark.parametrize("text", [text for _, text in COHORT_FILES], ids=[name for name, _ in COHORT_FILES])
def test_every_cohort_file_on_a_page_is_one(text: str) -> None:
    CohortFile.model_validate(tomllib.loads(text))


def test_one_cohort_file_of_the_page_says_all_that_one_can_say() -> None:
    said = set(CohortFile.model_fields)
    assert any(said == set(tomllib.loads(text)) for text in blocks(COHORTS, "toml"))


def keys(model: type[BaseModel]) -> Iterator[str]:
    """The keys of a model and of the sections in it."""
    for name, field in model.model_fields.items():
        yield name
        for option in getattr(field.annotation, "__args__", (field.annotation,)):
            if isinstance(option, type) and issubclass(option, BaseModel):
                yield from keys(option)


def test_the_page_on_cohorts_names_every_key_and_every_format() -> None:
    page = COHORTS.read_text(encoding="utf-8")
    assert [key for key in keys(CohortFile) if not re.search(rf"\b{key}\b( = |\])", page)] == []
    assert [name for name in FORMATS if f"| `{name}` |" not in page] == []


def test_the_page_on_cohorts_explains_every_finding() -> None:
    source = "".join(path.read_text() for path in Path(slimbench.cohorts.__file__).parent.glob("*.py"))
    subjects = set(re.findall(r"inding\(\s*(?:\"\w+\"|severity), \"([\w ]+)\"", source))
    explained = set(
        re.findall(r"^\| `([\w ]+)` \| (?:error|warning|info)", COHORTS.read_text(), re.MULTILINE)
    )
    assert len(subjects) > 15 and subjects == explained
