"""Zero-shot wording and class order from the files that TITAN, Patho-Bench and CONCH publish; and our own
wording for the classes of TCGA-OT and EBRAINS, one file each in the folder `wording`."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from slimbench.cohorts.cohort import Prompts
from slimbench.cohorts.findings import nearest
from slimbench.errors import CohortError

_SHIPPED = {path.stem: path for path in sorted((Path(__file__).parent / "wording").glob("*.toml"))}


def read_label_dict(path: Path) -> tuple[tuple[str, ...], Mapping[str, str]]:
    """Class names in the order of a YAML's `label_dict`, and {what the table writes: class name}.

    TITAN maps names to numbers, other task files numbers to names; a table may then hold the numbers.
    """
    labels = _load(path).get("label_dict")
    if not isinstance(labels, dict) or not labels:
        raise CohortError(f"{path}: no `label_dict`; expected one like {{LUAD: 0, LUSC: 1}}")
    by_number = all(isinstance(key, int) or str(key).isdigit() for key in labels)
    if not by_number and not all(isinstance(number, int) for number in labels.values()):
        raise CohortError(f"{path}: the `label_dict` maps {next(iter(labels))!r} to no number")
    pairs = labels.items() if by_number else ((number, name) for name, number in labels.items())
    ordered = sorted((int(number), str(name)) for number, name in pairs)
    return tuple(name for _, name in ordered), {
        str(number): name for number, name in ordered
    } if by_number else {}


def read_prompts(path: Path, templates: tuple[str, ...] | None) -> Prompts:
    """Prompts from TITAN's YAML (`prompts: {CLASS: [names]}`) or CONCH's JSON
    (`{"0": {"classnames": {CLASS: [names]}, "templates": [...]}}`); `templates` replaces the file's."""
    content = _load(path)
    if "prompts" in content:
        names, own = content["prompts"], None
    else:
        first = content.get("0", content)
        names, own = (
            (first.get("classnames"), first.get("templates")) if isinstance(first, dict) else (None, None)
        )
    if not isinstance(names, dict):
        raise CohortError(f"{path}: no class names; expected `prompts` (TITAN) or `classnames` (CONCH)")
    listed = {
        str(key): (value,) if isinstance(value, str) else tuple(map(str, value))
        for key, value in names.items()
    }
    return Prompts(listed, templates or (tuple(own) if own else ("CLASSNAME",)), path.name)


def shipped_prompts(name: str, where: str) -> Prompts:
    """Our own wording called `name`: "tcga-ot" (OncoTree codes) or "ebrains" (diagnoses and their groups).

    Raises CohortError, which begins with `where`, for a name that is none.
    """
    if name not in _SHIPPED:
        raise CohortError(f"{where}: no wording is called {name!r}; {nearest(name, _SHIPPED)}")
    content = tomllib.loads(_SHIPPED[name].read_text(encoding="utf-8"))
    names = {label: tuple(given) for label, given in content["names"].items()}
    return Prompts(names, tuple(content["templates"]), f"slimbench {name}")


def shipped_for(classes: Iterable[str]) -> str | None:
    """The shipped wording that has names for all of `classes`, or None; None for no class."""
    wanted = {name.strip() for name in classes}
    found = (name for name in _SHIPPED if wanted <= set(shipped_prompts(name, "").names))
    return next(found, None) if wanted else None


def checked_prompts(prompts: Prompts, classes: tuple[str, ...], where: str) -> Prompts:
    """The prompts of the cohort's classes, found without the spaces around them that EBRAINS was published
    with; CohortError for a class without a name or a template without CLASSNAME."""
    names = {name: prompts.names.get(name) or prompts.names.get(name.strip()) or () for name in classes}
    for name in classes:
        if not names[name]:
            raise CohortError(
                f"{where}: class {name!r} has no name in the prompts ({prompts.source}); add one"
            )
    for template in prompts.templates:
        if "CLASSNAME" not in template:
            raise CohortError(f"{where}: template {template!r} lacks the word CLASSNAME")
    return replace(prompts, names=names)


def _load(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except OSError as error:
        raise CohortError(f"no file {path} ({error.strerror})") from None
    except (ValueError, yaml.YAMLError) as error:
        raise CohortError(f"{path}: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise CohortError(f"{path}: expected a mapping, got {type(content).__name__}")
    return content
