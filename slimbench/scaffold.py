"""`slimbench new reducer NAME`: a package of one reducer, ready to be installed beside slimbench.

NAME/pyproject.toml            with the entry point by which slimbench finds it
NAME/slimbench_NAME.py         the reducer: one method to write
NAME/test_slimbench_NAME.py    every promise of slimbench.conformance as a test
NAME/README.md
"""

from __future__ import annotations

import re
from pathlib import Path
from string import Template

from slimbench.errors import UsageError
from slimbench.registry import reducers

_FILES = {
    "pyproject.toml": """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "slimbench-$name"
version = "0.1.0"
description = "The token reducer $name for slimbench."
readme = "README.md"
requires-python = ">=3.11"
dependencies = ["slimbench"]

[project.optional-dependencies]
test = ["pytest"]

[project.entry-points."slimbench.reducers"]
$name = "$module:$cls"

[tool.hatch.build.targets.wheel]
only-include = ["$module.py"]
""",
    "$module.py": '''\
"""$cls: keep the patches that differ most from the mean patch.

An example that works; say here what yours does, where it comes from, and what it costs. O(N D).
"""

from torch import Tensor

from slimbench import Context, Pruner, Tokens


class $cls(Pruner):
    """Keeps the tokens farthest from their mean."""

    def score(self, tokens: Tokens, context: Context) -> Tensor:
        """[N], the higher the longer kept."""
        x = tokens.x.float()
        return (x - x.mean(0)).norm(dim=1)
''',
    "test_$module.py": """\
from $module import $cls

from slimbench.conformance import ReducerConformance


class Test$cls(ReducerConformance):
    reducer = $cls
""",
    "README.md": """\
# $name

A token reducer for [slimbench](https://pypi.org/project/slimbench/).

    pip install -e '.[test]'
    pytest                                                  # does it keep its promises?
    slimbench list reducers                                 # there it is
    slimbench sweep --reducer $name --reducer random        # what does it keep, and what is it worth?
""",
}


def new_reducer(name: str, folder: Path) -> list[Path]:
    """Write the package of a reducer called `name` into `folder`/`name`; the files, in order of reading.

    UsageError if the name is no plugin name or is taken, or if the folder exists.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise UsageError(
            f"{name!r} is no name for a plugin; use small letters, digits and hyphens: far-patches"
        )
    known = reducers.plugins()
    if name in known:
        raise UsageError(
            f"a reducer {name!r} is there already, in {known[name].package}; choose another name"
        )
    home = folder / name
    if home.exists():
        raise UsageError(f"{home} exists; remove it, or choose another name or folder")
    words = {
        "name": name,
        "module": f"slimbench_{name.replace('-', '_')}",
        "cls": "".join(part.capitalize() for part in name.split("-")),
    }
    home.mkdir(parents=True)
    made = []
    for file, text in _FILES.items():
        path = home / Template(file).substitute(words)
        path.write_text(Template(text).substitute(words), encoding="utf-8")
        made.append(path)
    return made
