"""What is wrong, doubtful or worth knowing about a cohort's data."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "info"]


@dataclass(frozen=True)
class Finding:
    """One kind of problem, however often it occurs.

    severity  error: a number would be spoiled, nothing runs; warning: read it before you publish; info
    subject   a fixed word: "leakage", "missing features", ...
    message   one line: what was found and where (the first place), what was expected, what to do
    count     in how many slides, patients or rows
    examples  the first of them
    """

    severity: Severity
    subject: str
    message: str
    count: int = 1
    examples: tuple[str, ...] = ()


EXAMPLES = 10


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: "did you mean a or b?", or all that is known."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=2, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names) or 'none'}"


def finding(severity: Severity, subject: str, message: str, where: Sequence[str]) -> Finding:
    """A Finding about `where`, which must not be empty; more than one place is counted in the message."""
    more = f" ({len(where):,} in all)" if len(where) > 1 else ""
    return Finding(severity, subject, message + more, len(where), tuple(where[:EXAMPLES]))
