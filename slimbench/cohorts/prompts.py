"""Zero-shot wording and class order from the files that TITAN, Patho-Bench and CONCH publish."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from slimbench.cohorts.cohort import Prompts
from slimbench.errors import CohortError


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
    return Prompts(listed, templates or (tuple(own) if own else ("CLASSNAME",)))


def checked_prompts(prompts: Prompts, classes: tuple[str, ...], where: str) -> Prompts:
    """The prompts of the cohort's classes; CohortError for a class without a name or a template
    without CLASSNAME."""
    for name in classes:
        if not prompts.names.get(name):
            raise CohortError(f"{where}: class {name!r} has no name in the prompts; add one")
    for template in prompts.templates:
        if "CLASSNAME" not in template:
            raise CohortError(f"{where}: template {template!r} lacks the word CLASSNAME")
    return Prompts({name: prompts.names[name] for name in classes}, prompts.templates)


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
