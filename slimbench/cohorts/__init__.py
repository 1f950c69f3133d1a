"""Cohorts: the embedded one, and the user's own from a TOML file. `open_cohort(NAME or FILE.toml)` opens either."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from slimbench.errors import CohortError

if TYPE_CHECKING:
    from slimbench.cohorts.cohort import Cohort

EMBEDDED = {"digits": "slides made of handwritten digits, with known lesions; built in seconds, no download"}


def open_cohort(name: str, advance: Callable[[int, int], None] = lambda done, total: None) -> Cohort:
    """The embedded cohort called `name`, or the one that a TOML or YAML file describes.

    advance  is called with (files looked into, files to look into) where features are opened for the first time

    Raises CohortError (unknown name, unreadable file, bad data), always one line with the remedy.
    """
    if name in EMBEDDED:
        from slimbench.cohorts.digits import digits

        return digits()
    from slimbench.cohorts.table import from_file

    if not Path(name).suffix and not Path(name).exists():
        from slimbench.cohorts.findings import nearest

        raise CohortError(
            f"no cohort is called {name!r}; {nearest(name, EMBEDDED)} One's own is named by its FILE.toml"
        )
    return from_file(name, advance)
