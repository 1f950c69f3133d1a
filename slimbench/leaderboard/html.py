"""The leaderboard as one self-contained page: no network, a few lines of script, a strict policy."""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from jinja2 import DictLoader, Environment, StrictUndefined

from slimbench.leaderboard import pareto
from slimbench.leaderboard.escape import one_line
from slimbench.leaderboard.rows import rows
from slimbench.leaderboard.table import Column, Table
from slimbench.runs.record import Record


@dataclass(frozen=True)
class _Sheet:
    """A table as the page needs it. kind: the class of its section."""

    table: Table
    groups: tuple[tuple[str, int], ...]
    kind: str


def to_html(records: Iterable[Record], tables: Sequence[Table]) -> str:
    """The page. Every text in it is somebody else's and is escaped; only the script below may run."""
    folder = importlib.resources.files("slimbench.leaderboard") / "page"
    files = {name: (folder / name).read_text() for name in ("page.html", "page.css", "page.js")}
    environment = Environment(loader=DictLoader(files), autoescape=True, undefined=StrictUndefined)
    environment.filters["plain"] = one_line
    return environment.get_template("page.html").render(
        sheets=[_Sheet(table, _groups(table.columns), _kind(table)) for table in tables],
        plots=pareto.plots(rows(records)),
        size=pareto,
        css=files["page.css"],
        js=files["page.js"],
        policy=f"default-src 'none'; style-src {_hash(files['page.css'])}; script-src {_hash(files['page.js'])}",
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _kind(table: Table) -> str:
    return next(
        (kind for kind in ("published", "failed") if table.title.lower().startswith(kind)), "measured"
    )


def _groups(columns: Sequence[Column]) -> tuple[tuple[str, int], ...]:
    return tuple(
        (group, len(list(members))) for group, members in groupby(columns, key=lambda column: column.group)
    )
