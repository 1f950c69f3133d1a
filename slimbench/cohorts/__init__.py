"""Cohorts: the embedded one, and the user's own from a TOML file. `cohort(NAME|FILE.toml)` opens either."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from slimbench.cohorts.cohort import Cohort

EMBEDDED = {"digits": "slides made of handwritten digits, with known lesions; built in seconds, no download"}


def open_cohort(name: str) -> Cohort:
    """The embedded cohort called `name`, or the one that a TOML or YAML file describes.

    Raises CohortError (unknown name, unreadable file, bad data), always one line with the remedy.
    """
    if name in EMBEDDED:
        from slimbench.cohorts.digits import digits

        return digits()
    from slimbench.cohorts.table import from_file

    return from_file(name)
