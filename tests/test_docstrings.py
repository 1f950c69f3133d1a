"""The examples in docstrings are true."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("slimbench", "reducers", "encoders", "tasks")
WITH_EXAMPLES = sorted(
    path.relative_to(ROOT)
    for room in ROOMS
    for path in (ROOT / room).rglob("*.py")
    if ">>> " in path.read_text(encoding="utf-8")
    and not (room == "slimbench" and path.relative_to(ROOT).parts[1] in ROOMS)
)


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=str)
def test_the_examples_of_a_file_run(path: Path) -> None:
    parts = path.with_suffix("").parts
    module = importlib.import_module(".".join(parts if parts[0] == "slimbench" else ("slimbench", *parts)))
    found = doctest.testmod(module)
    assert found.attempted > 0 and found.failed == 0
