"""Reading tables: CSV, TSV, and HistGen's annotation JSON, all as text, nothing guessed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from slimbench.cohorts.findings import nearest
from slimbench.errors import CohortError


@dataclass(frozen=True)
class Table:
    """Rows of text; an empty cell is None, every other one is kept as it is written ("NA" is a name).

    name  for messages: the file's path
    """

    name: str
    columns: tuple[str, ...]
    rows: tuple[dict[str, str | None], ...]

    def column(self, name: str) -> list[str | None]:
        """One column, by row; CohortError with the nearest name when there is none."""
        self.require(name)
        return [row[name] for row in self.rows]

    def require(self, name: str) -> None:
        """CohortError unless the table has this column."""
        if name not in self.columns:
            raise CohortError(f"{self.name}: no column {name!r}; {nearest(name, self.columns)}")

    def row_name(self, row: int) -> str:
        """How a message calls row `row` (0-based): its line in a table without line breaks in cells."""
        return f"{self.name} row {row + 2}"


def read_table(path: Path) -> Table:
    """The table in `path`; CohortError names the file, the place and the remedy."""
    return _read_json(path) if path.suffix == ".json" else _read_delimited(path)


def _read_delimited(path: Path) -> Table:
    import pandas as pd

    separator = "\t" if path.suffix in (".tsv", ".tab") else ","
    try:
        frame = pd.read_csv(
            path,
            sep=separator,
            dtype=str,
            keep_default_na=False,
            na_values=[""],
            encoding="utf-8-sig",
            index_col=False,
        )
    except OSError as error:
        raise CohortError(f"no table {path} ({error.strerror or error})") from None
    except UnicodeDecodeError as error:
        guess = "UTF-16" if path.read_bytes()[:2] in (b"\xff\xfe", b"\xfe\xff") else "Latin-1"
        raise CohortError(
            f"{path}: byte {error.start} is not UTF-8 ({guess}, perhaps); save the table as UTF-8"
        ) from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, pd.errors.ParserWarning) as error:
        raise CohortError(f"{path}: not a table: {' '.join(str(error).split())}") from None
    columns = tuple(map(str, frame.columns))
    if len(columns) == 1:
        for other, called in ((";", "semicolons"), ("\t", "tabs"), (",", "commas")):
            if other in columns[0] and other != separator:
                wanted = "tabs" if separator == "\t" else "commas"
                raise CohortError(f"{path}: columns are separated by {called}; expected {wanted}")
    values = frame.astype(object).where(frame.notna(), None).to_numpy().tolist()
    return Table(str(path), columns, tuple(dict(zip(columns, row, strict=True)) for row in values))


def _read_json(path: Path) -> Table:
    """HistGen's annotation: {"train": [{"id", "report", ...}], "val": [...], "test": [...]}.

    The rows get columns id, report and split.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CohortError(f"no table {path} ({error.strerror})") from None
    except ValueError as error:
        raise CohortError(f"{path}: not a JSON file: {error}") from None
    expected = f'{path}: expected {{"train": [{{"id": ..., "report": ...}}], "val": [...], "test": [...]}}'
    if not isinstance(content, dict) or not all(isinstance(part, list) for part in content.values()):
        raise CohortError(expected)
    rows: list[dict[str, str | None]] = []
    for split, entries in content.items():
        for entry in entries:
            if not isinstance(entry, dict) or not isinstance(entry.get("id"), str):
                raise CohortError(f"{expected}; an entry of {split!r} has no id")
            report = entry.get("report")
            rows.append(
                {"id": entry["id"], "report": report if isinstance(report, str) else None, "split": split}
            )
    return Table(str(path), ("id", "report", "split"), tuple(rows))
