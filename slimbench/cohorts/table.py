"""A cohort from a user's files: tables joined with features that stay on disk until they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from slimbench.cohorts.cohort import (
    CaptionSource,
    Cohort,
    Defaults,
    Patches,
    Prompts,
    Slide,
    fingerprint_of,
    usual_tasks,
)
from slimbench.cohorts.config import CohortFile, PromptsSection, read_cohort_file
from slimbench.cohorts.findings import Finding, finding
from slimbench.cohorts.join import Join, join
from slimbench.cohorts.prompts import checked_prompts, read_prompts, shipped_prompts
from slimbench.cohorts.readers.features import (
    Advance,
    Entry,
    current_copies,
    entries,
    find_files,
    read_finite,
    unwatched,
)
from slimbench.cohorts.readers.file import FeatureFile
from slimbench.cohorts.rows import Row, Rows, read_rows
from slimbench.errors import CohortError


@dataclass(frozen=True)
class TableCohort(Cohort):
    """Slides of a cohort file; `patches` opens the slide's file, reads and checks it, and closes it.

    files     {slide id: (its feature file, its id there)}
    entries   {slide id: what is remembered of its features}
    """

    name: str
    slides: tuple[Slide, ...]
    classes: tuple[str, ...]
    dim: int
    captions: CaptionSource
    fingerprint: str
    files: Mapping[str, tuple[FeatureFile, str]] = field(repr=False)
    entries: Mapping[str, Entry] = field(repr=False)
    prompts: Prompts | None = None
    defaults: Defaults = field(default_factory=Defaults)
    dropped: Mapping[str, int] = field(default_factory=dict)
    joins: tuple[Join, ...] = ()

    def patches(self, slide_id: str) -> Patches:
        file, name = self.files[slide_id]
        return read_finite(file, name, self.dim)


@dataclass(frozen=True)
class Opened:
    """A cohort file as far as it can be opened: the cohort, if any slide is left, and what is wrong."""

    cohort: TableCohort | None
    findings: tuple[Finding, ...]


def from_file(name: str | Path, advance: Advance = unwatched) -> TableCohort:
    """The cohort that a TOML or YAML file describes (see `config`); CohortError for the first error in it.

    advance  as of `open_file`
    """
    opened = open_file(Path(name), advance=advance)
    for found in opened.findings:
        if found.severity == "error":
            raise CohortError(found.message)
    assert opened.cohort is not None
    return opened.cohort


def open_file(path: Path, splits: bool = True, packed: bool = True, advance: Advance = unwatched) -> Opened:
    """Open a cohort file and collect every error instead of stopping at the first.

    splits   False: leave the splits unread; every slide's split is then ""
    packed   False: read the sources even where there are packed copies
    advance  is called with (files looked into, files to look into) where features are opened for the first time
    Still raises CohortError for what stops the reading: a file, column or key that is not there.
    """
    file = read_cohort_file(path)

    def resolve(given: Path) -> Path:
        return path.parent / given.expanduser()

    tables = read_rows(file, resolve, splits)
    files = find_files([resolve(part) for part in file.features], file.format)
    rows, known = _with_features(tables, file, files, path, advance)
    if not rows:
        none = finding(
            "error", "slides", f"{path}: no slide is left; {'; '.join(map(str, tables.joins))}", [path.name]
        )
        return Opened(None, (*tables.findings, none))
    names = {row.id: name for row, name in rows}
    slides = tuple(
        Slide(row.id, row.patient, row.split or "", known[name].patches, row.label, row.report, row.site)
        for row, name in sorted(rows, key=lambda pair: (pair[0].split or "", pair[0].id))
    )
    prompts = None
    if file.prompts is not None:
        prompts = checked_prompts(_prompts(file.prompts, resolve, str(path)), tables.classes, str(path))
    copies: Mapping[str, FeatureFile] = {}
    if packed and file.packed is not None:
        copies = _copies(resolve(file.packed), names.values(), known, tables, advance)
    name = file.name or path.stem
    captions: CaptionSource = file.reports.source if file.reports is not None else "report"
    dim = known[rows[0][1]].dim
    stated = file.defaults.model_dump(exclude_none=True)
    cohort = TableCohort(
        name=name,
        slides=slides,
        classes=tables.classes,
        dim=dim,
        captions=captions,
        fingerprint=fingerprint_of(
            name, slides, tables.classes, dim, captions, prompts, [known[names[s.id]].digest for s in slides]
        ),
        files={slide: (copies.get(name, files[name]), name) for slide, name in names.items()},
        entries={slide: known[name] for slide, name in names.items()},
        prompts=prompts,
        defaults=Defaults(**{"tasks": usual_tasks(slides, prompts)} | stated),
        dropped={reason: count for reason, count in tables.dropped.items() if count},
        joins=tuple(tables.joins),
    )
    return Opened(cohort, tuple(tables.findings))


def _prompts(given: PromptsSection, resolve: Callable[[Path], Path], where: str) -> Prompts:
    """The wording that a cohort file names, with the file's own templates if it has some."""
    if given.file is not None:
        return read_prompts(resolve(given.file), given.templates)
    if given.wording is not None:
        shipped = shipped_prompts(given.wording, where)
        return replace(shipped, templates=given.templates) if given.templates else shipped
    return Prompts(given.names or {}, given.templates or ("CLASSNAME",))


def _copies(
    folder: Path, names: Iterable[str], known: Mapping[str, Entry], tables: Rows, advance: Advance
) -> Mapping[str, FeatureFile]:
    """The packed copies in `folder` that are current; those that are not become a warning."""
    copies, outdated = current_copies(folder, {name: known[name].digest for name in names}, advance)
    if outdated:
        message = (
            f"{folder}: the packed copy of slide {outdated[0]} is of other features than its source holds "
            "now, or of another format; the source is read instead, run `slimbench data pack` again"
        )
        tables.findings.append(finding("warning", "packed", message, outdated))
    return copies


def _with_features(
    tables: Rows, file: CohortFile, files: Mapping[str, FeatureFile], path: Path, advance: Advance
) -> tuple[list[tuple[Row, str]], dict[str, Entry]]:
    """The rows that have features, each with its id among the files, and the files' entries.

    Slides without features, unreadable or odd-sized ones become findings, empty ones are counted.
    """
    places = ", ".join(str(part) for part in file.features)
    found, went = join((row.id for row in tables.rows), files, "features", places)
    tables.joins.append(went)
    without = [row for row in tables.rows if row.id not in found]
    if without and file.missing == "error":
        message = (
            f"{without[0].where}: slide {without[0].id} has no features in {places}; add its file, "
            f'or drop such slides with missing = "drop" in {path.name}'
        )
        tables.findings.append(finding("error", "missing features", message, [row.id for row in without]))
    tables.dropped["no features"] += len(without)
    known, problems = entries(files, list(found.values()), advance)
    if problems:
        message = next(iter(problems.values()))
        tables.findings.append(finding("error", "unreadable features", message, list(problems)))
    rows = [(row, found[row.id]) for row in tables.rows if row.id in found and found[row.id] in known]
    full = [(row, name) for row, name in rows if known[name].patches]
    tables.dropped["empty"] += len(rows) - len(full)
    if full:
        dim = known[full[0][1]].dim
        odd = [(row, name) for row, name in full if known[name].dim != dim]
        if odd:
            row, name = odd[0]
            message = (
                f"{files[name].path}: slide {row.id} has width {known[name].dim}, the cohort has {dim} "
                f"(slide {full[0][0].id}); extract all slides with one encoder"
            )
            tables.findings.append(finding("error", "width", message, [row.id for row, _ in odd]))
    return full, known
