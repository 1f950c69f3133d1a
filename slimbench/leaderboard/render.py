"""A table as text: for the terminal, for Markdown, LaTeX (booktabs) and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby

from rich.console import Console, Group
from rich.table import Table as RichTable
from rich.text import Text

from slimbench.leaderboard.escape import csv_text, latex, markdown, one_line
from slimbench.leaderboard.table import Column, Table


def print_tables(tables: Iterable[Table], console: Console) -> None:
    """Print to a terminal; where it is narrow, the columns of highest rank give way."""
    for table in tables:
        shown = _fitting(table, console)
        if len(shown) < len(table.columns):
            hidden = len(table.columns) - len(shown)
            note = Text(
                f"{hidden} columns need a wider window; --format md, csv or html shows all", style="dim"
            )
            console.print(Group(_rich(table, shown), note))
        else:
            console.print(_rich(table, shown))
        for line in table.notes:
            console.print(Text(one_line(line), style="dim"))
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
    """One `table` environment each; needs \\usepackage{booktabs}."""
    parts = []
    for table in tables:
        spec = "".join("r" if column.number else "l" for column in table.columns)
        lines = [
            r"\begin{table}",
            rf"\caption{{{latex(table.title)}}}",
            rf"\begin{{tabular}}{{{spec}}}",
            r"\toprule",
        ]
        lines += _latex_groups(table.columns)
        lines += [_ampersands(latex(column.title) for column in table.columns), r"\midrule"]
        lines += [_ampersands(latex(cell.text) for cell in row) for row in table.rows]
        lines += [r"\bottomrule", r"\end{tabular}"]
        lines += [rf"\par\footnotesize {latex(note)}" for note in table.notes]
        parts.append("\n".join([*lines, r"\end{table}"]))
    return "% \\usepackage{booktabs}\n" + "\n\n".join(parts) + "\n"


def to_csv(tables: Iterable[Table]) -> str:
    """All tables in one file, full precision, each row beginning with its table's title."""
    tables = list(tables)
    titles = list(dict.fromkeys(_flat(column) for table in tables for column in table.columns))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["table", *map(csv_text, titles)])
    for table in tables:
        place = {_flat(column): number for number, column in enumerate(table.columns)}
        for row in table.rows:
            cells = [row[place[title]] if title in place else None for title in titles]
            writer.writerow(
                [csv_text(table.title), *(_field(cell.value if cell else None) for cell in cells)]
            )
    return out.getvalue()


FORMATS: dict[str, Callable[[Iterable[Table]], str]] = {"md": to_markdown, "latex": to_latex, "csv": to_csv}


def _rich(table: Table, shown: Sequence[int]) -> RichTable:
    made = RichTable(title=Text(one_line(table.title)), title_justify="left", header_style="bold")
    last = ""
    for place in shown:
        column = table.columns[place]
        group = column.group if column.group != last else ""
        last = column.group
        head = Text(
            f"{one_line(group)}\n{one_line(column.title)}"
            if any(c.group for c in table.columns)
            else column.title
        )
        made.add_column(head, justify="right" if column.number else "left", overflow="fold")
    for row in table.rows:
        made.add_row(*(Text(one_line(row[place].text)) for place in shown))
    return made


def _fitting(table: Table, console: Console) -> list[int]:
    """Places of the columns that fit, without breaking numbers, into the console's width."""
    for limit in range(max((column.rank for column in table.columns), default=0), -1, -1):
        shown = [place for place, column in enumerate(table.columns) if column.rank <= limit]
        if console.measure(_rich(table, shown)).maximum <= console.width or limit == 0:
            return shown
    return []


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


def _field(value: float | str | None) -> str:
    return "" if value is None else csv_text(value) if isinstance(value, str) else repr(value)
