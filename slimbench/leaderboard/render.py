"""A table as text: for the terminal, for Markdown, LaTeX (booktabs) and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from slimbench.leaderboard.escape import csv_text, latex, markdown, one_line
from slimbench.leaderboard.table import Cell, Column, Table

LATEX_RANK = 3  # columns of a higher rank do not fit a page


def print_tables(tables: Iterable[Table], console: Console) -> None:
    """Print to a terminal; where it is narrow, the columns of highest rank give way."""
    for table in tables:
        shown = _fitting(table, console)
        console.print(_rich(shown))
        hidden = len(table.columns) - len(shown.columns)
        if hidden:
            line = f"{hidden} columns need a wider window; --format md, csv and html have all"
            console.print(Text(line, style="dim"))
        for note in table.notes:
            console.print(Text(one_line(note), style="dim"))
        console.print()


def to_markdown(tables: Iterable[Table]) -> str:
    """GitHub-flavoured Markdown."""
    parts = []
    for table in tables:
        heads = [markdown(_flat(column)) for column in table.columns]
        lines = [f"### {markdown(table.title)}", "", _pipes(heads)]
        lines.append(_pipes(["---:" if column.number else "---" for column in table.columns]))
        lines += [_pipes([markdown(cell.text) for cell in row]) for row in table.rows]
        lines += [f"\n{markdown(note)}" for note in table.notes]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def to_latex(tables: Iterable[Table]) -> str:
    """One `table` environment each, of the columns up to LATEX_RANK; needs booktabs and graphicx."""
    parts = []
    for table in (_up_to(table, LATEX_RANK) for table in tables):
        spec = "".join("r" if column.number else "l" for column in table.columns)
        lines = [
            r"\begin{table}",
            rf"\caption{{{latex(table.title)}}}",
            r"\resizebox{\linewidth}{!}{%",
            rf"\begin{{tabular}}{{{spec}}}",
            r"\toprule",
            *_latex_groups(table.columns),
            _ampersands(latex(column.title) for column in table.columns),
            r"\midrule",
            *(_ampersands(latex(cell.text) for cell in row) for row in table.rows),
            r"\bottomrule",
            r"\end{tabular}}",
            *(rf"\par\footnotesize {latex(note)}" for note in table.notes),
            r"\end{table}",
        ]
        parts.append("\n".join(lines))
    return "% \\usepackage{booktabs,graphicx}\n" + "\n\n".join(parts) + "\n"


def to_csv(tables: Iterable[Table]) -> str:
    """All tables in one file, full precision, each row beginning with its table's title."""
    lines: list[dict[str, float | str | None]] = []
    for table in tables:
        for row in table.rows:
            fields = [
                pair
                for column, cell in zip(table.columns, row, strict=True)
                for pair in _fields(column, cell)
            ]
            lines.append({"table": table.title, **dict(fields)})
    titles = list(dict.fromkeys(title for line in lines for title in line))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(map(csv_text, titles))
    writer.writerows([_field(line.get(title)) for title in titles] for line in lines)
    return out.getvalue()


FORMATS: dict[str, Callable[[Iterable[Table]], str]] = {
    "md": to_markdown,
    "latex": to_latex,
    "csv": to_csv,
}


def _rich(table: Table) -> RichTable:
    made = RichTable(title=Text(one_line(table.title)), title_justify="left", header_style="bold")
    grouped = any(column.group for column in table.columns)
    last = ""
    for column in table.columns:
        head = one_line(column.title)
        if grouped:  # a group is named over its first column
            head = f"{one_line(column.group) if column.group != last else ''}\n{head}"
        last = column.group
        made.add_column(Text(head), justify="right" if column.number else "left", overflow="fold")
    for row in table.rows:
        made.add_row(*(Text(one_line(cell.text)) for cell in row))
    return made


def _fitting(table: Table, console: Console) -> Table:
    """The table with as many columns as fit the console without breaking lines, at least those of rank 0."""
    ranks = sorted({column.rank for column in table.columns}, reverse=True)
    for rank in ranks:
        shown = _up_to(table, rank)
        wide = console.options.update(max_width=100_000)
        if console.measure(_rich(shown), options=wide).maximum <= console.width:
            return shown
    return _up_to(table, 0)


def _up_to(table: Table, rank: int) -> Table:
    """The table without the columns of a higher rank."""
    kept = [place for place, column in enumerate(table.columns) if column.rank <= rank]
    return Table(
        table.title,
        tuple(table.columns[place] for place in kept),
        tuple(tuple(row[place] for place in kept) for row in table.rows),
        table.notes,
    )


def _flat(column: Column) -> str:
    return f"{column.group} {column.title}".strip()


def _pipes(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _ampersands(cells: Iterable[str]) -> str:
    return " & ".join(cells) + r" \\"


def _latex_groups(columns: Sequence[Column]) -> list[str]:
    """The line of group headings with its rules, if there are groups."""
    if not any(column.group for column in columns):
        return []
    heads, rules, first = [], [], 1
    for group, members in groupby(columns, key=lambda column: column.group):
        width = len(list(members))
        heads.append(rf"\multicolumn{{{width}}}{{c}}{{{latex(group)}}}")
        if group:
            rules.append(rf"\cmidrule(lr){{{first}-{first + width - 1}}}")
        first += width
    return [_ampersands(heads), " ".join(rules)]


def _fields(column: Column, cell: Cell) -> Iterator[tuple[str, float | str | None]]:
    """(title, value) of a cell in CSV: two of an interval."""
    if not column.ends:
        yield _flat(column), None if isinstance(cell.value, tuple) else cell.value
        return
    low, high = cell.value if isinstance(cell.value, tuple) else (None, None)
    yield f"{_flat(column)} low", low
    yield f"{_flat(column)} high", high


def _field(value: float | str | None) -> str:
    return "" if value is None else csv_text(value) if isinstance(value, str) else repr(value)
