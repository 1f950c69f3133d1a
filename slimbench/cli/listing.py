"""`slimbench list`: what there is, without importing it."""

from __future__ import annotations

import ast
import importlib.util
import json
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from slimbench.registry import Plugin

KINDS = ("reducers", "encoders", "tasks", "cohorts", "text")
IMPORT_LIMIT = 60.0  # seconds that a third-party plugin may take to be imported


@dataclass(frozen=True)
class Listed:
    """A line of the list. broken: why it cannot be imported."""

    name: str
    doc: str
    package: str
    broken: str | None = None


def add_to(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command("list", short_help="What can be named.")(list_)


def list_(
    kind: Annotated[
        str,
        typer.Argument(
            metavar="[reducers|encoders|tasks|cohorts|text]", help="What to list; all by default."
        ),
    ] = "",
) -> None:
    """List what can be named on the command line, with the package that it comes from.

    A plugin of another package that cannot be imported is named with the reason, on standard error.

    \b
    Examples:
      slimbench list
      slimbench list reducers
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from slimbench.errors import UsageError
    from slimbench.leaderboard.escape import one_line

    if kind and kind not in KINDS:
        raise UsageError(f"there are no {kind!r} to list; known: {', '.join(KINDS)}")
    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    for each in (kind,) if kind else KINDS:
        found = listed(each)
        grid = Table.grid(padding=(0, 2))
        for line in found:
            grid.add_row(*(Text(one_line(text)) for text in (line.name, line.doc, line.package)))
        if not kind:
            console.print(Text(each, style="bold"))
        if sys.stdout.isatty():
            console.print(grid)
        else:
            print(
                *("\t".join(map(one_line, (line.name, line.doc, line.package))) for line in found), sep="\n"
            )
        for line in found:
            if line.broken:
                print(
                    f"broken {each} {one_line(line.name)} ({one_line(line.package)}): {one_line(line.broken)}",
                    file=sys.stderr,
                )


def listed(kind: str) -> list[Listed]:
    """Everything of one kind, by name; built-ins by reading their files, others by importing them elsewhere."""
    from slimbench import registry
    from slimbench.cohorts import EMBEDDED

    if kind == "cohorts":
        return [Listed(name, doc, "slimbench") for name, doc in EMBEDDED.items()]
    registries = {
        "reducers": registry.reducers,
        "encoders": registry.encoders,
        "tasks": registry.tasks,
        "text": registry.text_towers,
    }
    plugins = list(registries[kind].plugins().values())
    own = [plugin for plugin in plugins if plugin.target.startswith("slimbench.")]
    modules = Counter(plugin.target.partition(":")[0] for plugin in own)
    others = [plugin for plugin in plugins if plugin not in own]
    with ThreadPoolExecutor(4) as pool:
        imported = dict(zip(others, pool.map(_imported, others), strict=True))
    return [
        imported[plugin] if plugin in imported else Listed(plugin.name, _doc(plugin, modules), plugin.package)
        for plugin in plugins
    ]


def _doc(plugin: Plugin, modules: Counter[str]) -> str:
    """First sentence of the module's docstring, or of the class's where a module holds several plugins."""
    place, _, name = plugin.target.partition(":")
    spec = importlib.util.find_spec(place)
    if spec is None or spec.origin is None:
        return "(its file is missing)"
    tree = ast.parse(Path(spec.origin).read_text())
    nodes: list[ast.Module | ast.ClassDef | ast.FunctionDef] = [
        node for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name
    ]
    order = [*nodes, tree] if modules[place] > 1 else [tree, *nodes]
    return next((_sentence(doc) for node in order if (doc := ast.get_docstring(node))), "")


def _sentence(doc: str) -> str:
    paragraph = " ".join(doc.strip().split("\n\n")[0].split())
    return paragraph.partition(". ")[0].removesuffix(".")


_PROBE = """
import json, sys
from slimbench.registry import Plugin
found = Plugin(*json.loads(sys.argv[1])).load()
print("\\nslimbench:" + json.dumps(sys.modules[found.__module__].__doc__ or found.__doc__ or ""))
"""


def _imported(plugin: Plugin) -> Listed:
    """Import a plugin in a process of its own: it may print, hang, or end the process."""
    arguments = json.dumps([plugin.kind, plugin.name, plugin.target, plugin.package])
    command = [sys.executable, "-c", _PROBE, arguments]
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=IMPORT_LIMIT)
    except subprocess.TimeoutExpired:
        return Listed(plugin.name, "", plugin.package, f"no end of its import within {IMPORT_LIMIT:.0f} s")
    answers = [line for line in done.stdout.splitlines() if line.startswith("slimbench:")]
    if answers:
        doc = json.loads(answers[-1].removeprefix("slimbench:"))
        return Listed(plugin.name, _sentence(doc), plugin.package)
    last = (done.stderr.strip().splitlines() or [f"it ended the process (exit code {done.returncode})"])[-1]
    return Listed(plugin.name, "", plugin.package, last)
