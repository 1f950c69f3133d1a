"""The public interface: every name is there, sorted, documented, and costs nothing before it is used."""

import ast
import subprocess
import sys
from pathlib import Path

import slimbench

PACKAGE = Path(slimbench.__file__).parent


def test_every_public_name_loads_and_is_documented():
    assert slimbench.__all__ == sorted(slimbench.__all__)
    for name in slimbench.__all__:
        found = getattr(slimbench, name)
        assert found.__doc__, name
    assert set(slimbench.__all__) <= set(dir(slimbench))


def test_type_checkers_see_the_same_names():
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    (checked,) = [
        node for node in tree.body if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
    ]
    names = {
        alias.asname for node in checked.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert names == set(slimbench.__all__)


def test_an_unknown_name_is_an_attribute_error():
    assert not hasattr(slimbench, "prune")


def test_importing_slimbench_needs_no_torch():
    code = "import sys, slimbench; dir(slimbench); print('torch' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "False False\n"


def test_sweep_takes_what_the_command_takes():
    import inspect

    from slimbench.cli.sweeps import sweep as command
    from slimbench.runs.grid import grid

    python = inspect.signature(slimbench.sweep).parameters
    only_python = {"watch", "run_cell"}
    assert set(inspect.signature(command).parameters) - {"print_"} == set(python) - only_python
    for name, parameter in inspect.signature(grid).parameters.items():
        assert python[name].default == parameter.default, name
