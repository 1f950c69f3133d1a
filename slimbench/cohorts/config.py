"""The cohort file: what a TOML (or YAML) file may say, checked where it is read.

    name = "tcga-ot"                       # as leaderboards print it; default: the file's name
    features = "features_conch_v15"        # a folder or a file, or a list of them

    [slides]                               # the table with one row per slide
    table = "slides.csv"                   # or one table per split: train = ..., val = ..., test = ...
    label = "OncoTreeCode"                 # and slide = "slide_id", patient = "case_id", split = "split"

    [reports]
    table = "reports.csv"

Paths are relative to the file. Every other key is on the models below with its default.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, model_validator

from slimbench.cohorts.cohort import SPLITS, CaptionSource
from slimbench.cohorts.findings import nearest
from slimbench.errors import CohortError


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SlidesSection(_Section):
    """The table of slides. `table` with a split column, or one table per split.

    slide    column of slide ids; features are found by it
    patient  column of patient ids: no patient may stand in two splits. Default: `case_id`, or the
             first 12 characters of TCGA barcodes; name the slide column if every slide is a patient
    label    column of class names; without it the cohort has no probe
    site     column of tissue source sites, for checks of site overlap
    """

    table: Path | None = None
    train: Path | None = None
    val: Path | None = None
    test: Path | None = None
    slide: str = "slide_id"
    patient: str | None = None
    label: str | None = None
    split: str = "split"
    site: str | None = None

    @property
    def tables(self) -> dict[str | None, Path]:
        """The table files by split; under None the one that has a split column."""
        by_split: dict[str | None, Path] = {
            split: path for split in SPLITS if (path := getattr(self, split)) is not None
        }
        return {None: self.table} if self.table is not None else by_split

    @model_validator(mode="after")
    def _one_kind_of_table(self) -> Self:
        per_split = [split for split in SPLITS if getattr(self, split) is not None]
        if self.table is None and not per_split:
            raise ValueError(
                'names no table; write table = "slides.csv", or train = ..., val = ..., test = ...'
            )
        if self.table is not None and per_split:
            raise ValueError(f"names both `table` and `{per_split[0]}`; keep one of them")
        return self


class _Joined(_Section):
    """A further table, joined by slide id, or by patient id when only `patient` is named."""

    table: Path
    slide: str | None = None
    patient: str | None = None

    @model_validator(mode="after")
    def _one_kind_of_join(self) -> Self:
        if self.slide is not None and self.patient is not None:
            raise ValueError("names both `slide` and `patient`; it is joined by one of them")
        return self


class LabelsSection(_Joined):
    """Labels from a table of their own, for instance one row per patient."""

    label: str


class ReportsSection(_Joined):
    """Reports, one per slide or per patient. `source` says where the texts come from."""

    text: str = "text"
    source: CaptionSource = "report"


class SplitsSection(_Joined):
    """Splits from a table of their own, for instance one that `slimbench data split` wrote."""

    split: str = "split"


class PromptsSection(_Section):
    """Zero-shot wording: TITAN's YAML or CONCH's JSON as `file`, names written here, or slimbench's own
    `wording`; `templates` take the place of those that come with it."""

    file: Path | None = None
    names: dict[str, tuple[str, ...]] | None = None
    wording: str | None = None
    templates: tuple[str, ...] | None = None

    @model_validator(mode="after")
    def _some_names(self) -> Self:
        if sum(each is not None for each in (self.file, self.names, self.wording)) != 1:
            raise ValueError(
                'takes `file`, or `names` = { CLASS = ["a name", ...] }, or `wording` = "tcga-ot": one of them'
            )
        return self


class DefaultsSection(_Section):
    """What a sweep on this cohort uses when its user names nothing else; see `cohort.Defaults`."""

    encoder: str | None = None
    text: str | None = None
    recipe: str | None = None
    tasks: tuple[str, ...] | None = None


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _as_wording(value: Any) -> Any:
    return {"wording": value} if isinstance(value, str) else value


class CohortFile(_Section):
    """A whole cohort file.

    format   of the features; found out by looking when it is not given (`readers.FORMATS`)
    missing  what to do about slides without features: stop, or drop and count them
    packed   folder of repacked copies that `slimbench data pack` wrote; they are read instead
    classes  label names in order, or a YAML file with a `label_dict`; default: sorted names
    prompts  for zero-shot; a name alone is that of slimbench's own wording: prompts = "tcga-ot"
    """

    name: str | None = None
    features: Annotated[tuple[Path, ...], BeforeValidator(_as_list)]
    format: str | None = None
    missing: Literal["error", "drop"] = "error"
    packed: Path | None = None
    classes: tuple[str, ...] | Path | None = None
    slides: SlidesSection
    labels: LabelsSection | None = None
    reports: ReportsSection | None = None
    splits: SplitsSection | None = None
    prompts: Annotated[PromptsSection | None, BeforeValidator(_as_wording)] = None
    defaults: DefaultsSection = DefaultsSection()


def read_cohort_file(path: Path) -> CohortFile:
    """The checked content of a cohort file; CohortError in one line for anything wrong in it."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise CohortError(
            f"no cohort file {path} ({error.strerror}); `slimbench data init` writes one"
        ) from None
    try:
        if path.suffix == ".toml":
            content = tomllib.loads(raw.decode())
        elif path.suffix in (".yaml", ".yml"):
            content = yaml.safe_load(raw.decode())
        else:
            raise CohortError(f"{path}: a cohort file ends in .toml, .yaml or .yml")
    except (tomllib.TOMLDecodeError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise CohortError(f"{path}: {' '.join(str(error).split())}") from None
    try:
        return CohortFile.model_validate(content)
    except ValidationError as error:
        raise CohortError(f"{path}: {_first_problem(error)}") from None


def _first_problem(error: ValidationError) -> str:
    """The first thing that is wrong, with the section, the key and what was expected.

    An unknown key goes first: it is the reason why another one is missing.
    """
    first = min(error.errors(include_url=False), key=lambda each: each["type"] != "extra_forbidden")
    *sections, key = [str(part) for part in first["loc"]] or [""]
    where = f"[{'.'.join(sections)}] " if sections else ""
    if first["type"] == "extra_forbidden":
        return f"{where}has no key {key!r}; {nearest(key, _model_of(sections).model_fields)}"
    if first["type"] == "missing":
        return f"{where}lacks `{key}`"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return f"{where}[{key}] {message}" if key else message
    return f"{where}{key} = {first['input']!r}: {message[0].lower()}{message[1:]}"


def _model_of(sections: list[str]) -> type[BaseModel]:
    """The model that a section of the file is checked with."""
    model: type[BaseModel] = CohortFile
    for section in sections:
        field = model.model_fields[section].annotation
        options = getattr(field, "__args__", (field,))
        model = next(
            option for option in options if isinstance(option, type) and issubclass(option, BaseModel)
        )
    return model
