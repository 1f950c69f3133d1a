"""A first cohort file, written from what lies in a folder, with a comment at everything that was guessed.

slimbench data init FOLDER
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from slimbench.cohorts.cohort import SPLITS
from slimbench.cohorts.join import Finder, tcga_patient
from slimbench.cohorts.prompts import shipped_for
from slimbench.cohorts.readers.features import find_files
from slimbench.cohorts.readers.file import FeatureFile
from slimbench.cohorts.rows import NO_SPLIT
from slimbench.cohorts.tables import Table, read_table
from slimbench.errors import CohortError

_DEPTH = 4
_FEATURES = (".h5", ".hdf5", ".pt", ".npz", ".pkl", ".pickle")
_ONE_FILE = (".npz", ".pkl", ".pickle")  # formats that hold many slides in a file
_PATIENT = ("case_id", "patient_id", "patient", "PATIENT", "submitter_id", "case")
_LABEL = ("OncoTreeCode", "diagnosis", "label", "subtype", "target", "class", "grade")
_SITE = ("source_site", "site", "center", "centre", "hospital")
_TEXT = ("text", "report", "caption")


@dataclass(frozen=True)
class _Found:
    """Features that a cohort file can name: a folder, or files of many slides.

    format  to be stated where a folder has files of other formats too
    """

    paths: list[Path]
    files: Mapping[str, FeatureFile]
    format: str | None = None

    @property
    def whole_slides(self) -> bool:
        """Whether these are slide features: one row per slide, as far as the first three tell."""
        first = list(self.files.items())[:3]
        try:
            return all(file.head(slide).patches == 1 for slide, file in first)
        except CohortError:
            return False


@dataclass(frozen=True)
class _Named:
    """A table whose column `slide` names `matches` of the slides that have features."""

    path: Path
    table: Table
    slide: str
    matches: int


def init(folder: Path) -> str:
    """The text of a cohort file for what lies in `folder`, feature files at most four folders deep.

    Raises CohortError when no feature file is found, or no table that names the slides.
    """
    features, others = _features(folder)
    ids = list(features.files)
    named = sorted(_tables(folder, Finder(ids, str(folder))), key=lambda each: (-each.matches, each.path))
    if not named:
        raise CohortError(
            f"{folder}: {len(ids):,} slides with features, and no .csv, .tsv or .json table in it names one of "
            "them; put the table of labels there"
        )
    reports = next((each for each in named if _text_column(each.table)), None)
    slides = [each for each in named if each is not reports] or named
    task = _task_file(folder)
    lines = [
        f"# {len(ids):,} slides with features, such as {ids[0]}",
        "# Paths are relative to this file. `slimbench data check` says what fits and what does not.",
        f"name = {_quoted(folder.resolve().name)}",
        f"features = {_paths(features.paths, folder)}",
        *([f"format = {_quoted(features.format)}"] if features.format else []),
        *(f"# features = {_paths(other.paths, folder)}    # found too{_as_row(other)}" for other in others),
        'missing = "error"    # or "drop": leave out and count slides without features',
    ]
    if task is not None:
        lines.append(
            f"classes = {_paths([task[0]], folder)}    # their order, which weighted kappas depend on"
        )
    usual = (str(task[1].get("task_col")), *_LABEL) if task is not None else _LABEL
    section, classes = _slides(slides, folder, usual)
    lines += ["", "[slides]", *section]
    if reports is not None:
        lines += [
            "",
            "[reports]",
            f"table = {_paths([reports.path], folder)}",
            f"slide = {_quoted(reports.slide)}",
            f"text = {_quoted(_text_column(reports.table) or '')}",
            'source = "report"    # or "condensed", "template", "template-with-label"',
        ]
    if task is not None and "prompts" in task[1]:
        lines += [
            "",
            "[prompts]",
            f"file = {_paths([task[0]], folder)}",
            '# templates = ["a slide of CLASSNAME."]',
        ]
    elif (shipped := shipped_for(classes)) is not None:
        lines += ["", "[prompts]", f"wording = {_quoted(shipped)}    # slimbench's own, for zero-shot"]
    return "\n".join(lines) + "\n"


def _slides(named: list[_Named], folder: Path, usual: tuple[str, ...]) -> tuple[list[str], set[str]]:
    """The lines of [slides], one table per split if there are such, else the one that names most slides; and
    the labels in it.

    usual  names of label columns, the likeliest first
    """
    per_split = {
        split: each
        for split in SPLITS
        for each in named
        if each.path.stem.lower().endswith(split) and each.table.columns == named[0].table.columns
    }
    best = per_split.get("train", named[0])
    columns = best.table.columns
    if len(per_split) > 1:
        lines = [f"{split} = {_paths([each.path], folder)}" for split, each in per_split.items()]
    else:
        lines = [f"table = {_paths([best.path], folder)}"]
    lines.append(f"slide = {_quoted(best.slide)}")
    patient = _first(_PATIENT, columns)
    if patient is not None:
        lines.append(f"patient = {_quoted(patient)}    # no patient may stand in two splits")
    elif not all(tcga_patient(name) for name in best.table.column(best.slide) if name):
        lines.append(
            f"patient = {_quoted(best.slide)}    # no column of patients found: every slide counts as one"
        )
    labels = _label_columns(best.table, {best.slide, patient}, usual)
    classes: set[str] = set()
    if labels:
        tables = [each.table for each in per_split.values()] if len(per_split) > 1 else [best.table]
        classes = {cell for table in tables for cell in table.column(labels[0]) if cell}
        rest = f"    # or {', '.join(labels[1:6])}" if labels[1:] else ""
        lines.append(f"label = {_quoted(labels[0])}{rest}")
    site = _first(_SITE, columns)
    if site is not None:
        lines.append(f"site = {_quoted(site)}")
    if len(per_split) < 2:
        split = next((name for name in columns if _is_split(best.table, name)), None)
        if split is not None:
            lines.append(f"split = {_quoted(split)}")
        else:
            lines += ["", "[splits]    # no column of splits found: `slimbench data split` makes this table"]
            lines += ['table = "splits.csv"']
    return lines, classes


def _features(folder: Path) -> tuple[_Found, list[_Found]]:
    """The folder's patch files or the files of many slides, with most slides; and the others. Patch features go
    first."""
    found: list[_Found] = []
    for place in _folders(folder):
        files = sorted(path for path in place.iterdir() if path.suffix in _FEATURES and path.is_file())
        single = [each for path in files if path.suffix in _ONE_FILE for each in _read([path])]
        patches = [each for each in single if not each.whole_slides]
        found += _read([path for each in patches for path in each.paths]) or patches
        found += [each for each in single if each not in patches]
        found += _of_one_slide_each(place, [path for path in files if path.suffix not in _ONE_FILE])
    if not found:
        raise CohortError(f"{folder}: no feature files ({', '.join(_FEATURES)}) in it or four folders below")
    first, *others = sorted(found, key=lambda each: (each.whole_slides, -len(each.files)))
    return first, others


def _of_one_slide_each(place: Path, files: list[Path]) -> list[_Found]:
    """What `files`, all in the folder `place`, hold; format by format where the folder has others too."""
    if not files:
        return []
    firsts = {path.suffix: path for path in reversed(files)}
    formats = {
        file.format for path in firsts.values() for each in _read([path]) for file in each.files.values()
    }
    return _read([place]) or [each for format in sorted(formats) for each in _read([place], format)]


def _read(paths: list[Path], format: str | None = None) -> list[_Found]:
    """The features in `paths`; nothing for what is no feature file."""
    try:
        return [_Found(paths, find_files(paths, format), format)] if paths else []
    except CohortError:
        return []


def _as_row(found: _Found) -> str:
    """How slide features become a row beside those of the patches, from the folder that `init` is called in."""
    if found.format is not None:
        return f", with format = {_quoted(found.format)}"
    if len(found.paths) > 1 or not found.whole_slides:
        return ""
    spec = shlex.quote(f"slide-features:path={found.paths[0].as_posix()}")
    return f"; a row of its own: --encoder {spec}"


def _folders(folder: Path) -> Iterator[Path]:
    """`folder` and the folders in it, to a depth of four, sorted."""
    for place, inside, _ in os.walk(folder):
        inside[:] = sorted(name for name in inside if not name.startswith("."))
        if len(Path(place).relative_to(folder).parts) >= _DEPTH:
            inside.clear()
        yield Path(place)


def _tables(folder: Path, slides: Finder) -> Iterator[_Named]:
    """The tables directly in `folder` and in its folders that name slides with features."""
    for place in _folders(folder):
        for path in sorted(place.iterdir()):
            if path.suffix not in (".csv", ".tsv", ".json"):
                continue
            try:
                table = read_table(path)
            except CohortError:
                continue
            counts = {
                name: len({slides.find(cell) for cell in table.column(name) if cell} - {None})
                for name in table.columns
            }
            column = max(counts, key=lambda name: counts[name])
            if counts[column]:
                yield _Named(path, table, column, counts[column])


def _label_columns(table: Table, taken: set[str | None], usual: tuple[str, ...]) -> list[str]:
    """Columns that may be labels: the usual names first, then those with two to sixty values."""
    first = [name for name in dict.fromkeys(usual) if name in table.columns]
    free = set(table.columns) - taken - {*_SITE, *_TEXT, *first}
    few = [
        name for name in table.columns if name in free and 2 <= len(set(table.column(name)) - {None}) <= 60
    ]
    return first + [name for name in few if not _is_split(table, name)]


def _is_split(table: Table, name: str) -> bool:
    values = set(table.column(name))
    return "train" in values and values <= {*SPLITS, *NO_SPLIT}


def _text_column(table: Table) -> str | None:
    """A column of reports: a usual name with texts of 40 characters or more in the middle, or None."""
    for name in _TEXT:
        lengths = sorted(len(cell) for cell in table.column(name) if cell) if name in table.columns else []
        if lengths and lengths[len(lengths) // 2] >= 40:
            return name
    return None


def _task_file(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """A YAML file with a `label_dict`, as TITAN and Patho-Bench publish them, and its content."""
    for place in _folders(folder):
        for path in sorted((*place.glob("*.yaml"), *place.glob("*.yml"))):
            try:
                content = yaml.safe_load(path.read_text(encoding="utf-8"))
            except (OSError, ValueError, yaml.YAMLError):
                continue
            if isinstance(content, dict) and "label_dict" in content:
                return path, content
    return None


def _first(names: tuple[str, ...], columns: tuple[str, ...]) -> str | None:
    return next((name for name in names if name in columns), None)


def _paths(paths: list[Path], folder: Path) -> str:
    """Paths as a TOML value, relative to `folder`: one string, or a list of them."""
    texts = [_quoted(path.relative_to(folder).as_posix()) for path in paths]
    return texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
