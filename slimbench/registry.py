"""Where plugins are found: reducers, encoders, tasks, text towers.

    built-ins       the BUILT_INS dictionary of each room's __init__.py, {name: "module:attribute"}
                    and WEIGHTS, {name: "module:function"}, for those that come with published weights or
                    read the files of another program
    third parties   entry points of their own package, in group `slimbench.<kind>`
    first hour      path/to/file.py:Class

A plugin is written `NAME` or `FILE.py:CLASS`, with arguments behind a colon: `tome-local:window=256`,
`my_reducer.py:Mine:alpha=0.5`. One that wraps another has it in brackets: `reverse(cropr:order=score)`.
Nothing is imported before somebody asks for it.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slimbench.errors import PluginError, UsageError
from slimbench.files import content_hash
from slimbench.spec import Spec, typed_arguments

# Packages whose code makes the numbers of a plugin that imports it. The rest of slimbench is common to all
# cells: `--rerun stale` compares it.
_HASHED = (
    "slimbench.reducers",
    "slimbench.encoders",
    "slimbench.tasks",
    "slimbench.text",
    "slimbench.statistics",
    "slimbench.measure",
)


@dataclass(frozen=True)
class Plugin:
    """A plugin that was found: where it comes from, before it is imported.

    target      "module:attribute" or "path/to/file.py:attribute"
    package     the distribution it belongs to and its version, or the file's path
    """

    kind: str
    name: str
    target: str
    package: str

    def load(self) -> Callable[..., Any]:
        """Import it. PluginError names the plugin and its package when that fails."""
        place, _, attribute = self.target.rpartition(":")
        try:
            module = _module_of_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
            loaded: Callable[..., Any] = getattr(module, attribute)
        except (Exception, SystemExit) as error:
            raise PluginError(
                f"{self.kind} {self.name!r} ({self.package}) cannot be imported from {self.target}: "
                f"{type(error).__name__}: {error}"
            ) from error
        return loaded

    def code_hash(self) -> str:
        """First 16 hex digits of the SHA-256 of the file that defines it and of those files that it imports,
        directly or through others, from the rooms, from `slimbench.statistics` and `slimbench.measure`, and
        from its own package: an encoder's kernels, a task's metrics. Part of a cell's key."""
        files = _sources(self.target.rpartition(":")[0], {}).values()
        if not files:
            return hashlib.sha256(self.package.encode()).hexdigest()[:16]
        return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


class Registry:
    """The plugins of one kind.

    kind    "reducer", "encoder", ...: the word of messages
    room    the package whose BUILT_INS lists ours: "slimbench.reducers"; also the entry-point group
    """

    def __init__(self, kind: str, room: str) -> None:
        self.kind = kind
        self.room = room

    def plugins(self) -> dict[str, Plugin]:
        """Every known plugin by name, none of them imported. A name taken twice is a PluginError."""
        own = importlib.metadata.version("slimbench")
        built_ins: dict[str, str] = importlib.import_module(self.room).BUILT_INS
        found = {
            name: Plugin(self.kind, name, target, f"slimbench {own}") for name, target in built_ins.items()
        }
        for entry in importlib.metadata.entry_points(group=self.room):
            package = f"{entry.dist.name} {entry.dist.version}" if entry.dist else "unknown package"
            if entry.name in found:
                raise PluginError(
                    f"{self.kind} {entry.name!r} is defined twice, by {found[entry.name].package} and by "
                    f"{package}; uninstall one, or rename it in its pyproject.toml"
                )
            found[entry.name] = Plugin(self.kind, entry.name, entry.value, package)
        return dict(sorted(found.items()))

    def find(self, name: str) -> Plugin:
        """The plugin called `name`, or the class in `FILE.py:CLASS`; UsageError with the nearest names."""
        place, _, attribute = name.rpartition(":")
        if place.endswith(".py"):
            path = Path(place).resolve()
            if not path.is_file():
                raise UsageError(f"no file {place} for the {self.kind} {attribute}")
            return Plugin(self.kind, attribute, f"{path}:{attribute}", str(place))
        plugins = self.plugins()
        if name in plugins:
            return plugins[name]
        near = difflib.get_close_matches(name, plugins, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(plugins)}"
        raise UsageError(f"no {self.kind} is called {name!r}; {hint}")

    def build(self, spec: Spec | str, **given: Any) -> Any:
        """Import what `spec` names and call it with `given` and the spec's typed arguments; a wrapped
        plugin is built first, with the same `given`, and passed as `of`."""
        spec = Spec.parse(spec) if isinstance(spec, str) else spec
        factory = self.find(spec.name).load()
        wraps = "of" in inspect.signature(factory).parameters
        if spec.of is None and wraps:
            raise UsageError(f"{spec.name} wraps another {self.kind}; write {spec.name}(NAME)")
        if spec.of is not None:
            if not wraps:
                raise UsageError(
                    f"{spec.name} wraps no other {self.kind}; write {spec.name} without {spec.of}"
                )
            given["of"] = self.build(spec.of, **given)
        return factory(**given, **typed_arguments(factory, spec, reserved=set(given)))

    def code_hash(self, spec: Spec | str) -> str:
        """16 hex digits of the code that `spec` names, that of a wrapped plugin included."""
        spec = Spec.parse(spec) if isinstance(spec, str) else spec
        own = self.find(spec.name).code_hash()
        if spec.of is None:
            return own
        return hashlib.sha256((own + self.code_hash(spec.of)).encode()).hexdigest()[:16]

    def reads_weights(self, spec: Spec | str) -> bool:
        """Whether `spec` names a built-in that comes with published weights: one of its room's WEIGHTS."""
        return self._listed(spec, "WEIGHTS")

    def keeps_own_number(self, spec: Spec | str) -> bool:
        """Whether `spec` names a built-in reducer that no rate changes: one of its room's FIXED."""
        return self._listed(spec, "FIXED")

    def reads_patches(self, spec: Spec | str) -> bool:
        """False where `spec` names a built-in encoder that looks at no patches: one of its room's WITHOUT_PATCHES."""
        return not self._listed(spec, "WITHOUT_PATCHES")

    def _listed(self, spec: Spec | str, names: str) -> bool:
        """Whether `spec` names one of those that the room lists under `names`."""
        spec = Spec.parse(spec) if isinstance(spec, str) else spec
        return spec.name in getattr(importlib.import_module(self.room), names, ())

    def by_content(self, spec: Spec | str) -> str:
        """`spec` with hashes of what they hold in place of the files and folders that its arguments name.

        The same weights in another place then have the same spec, and other weights in the same place have
        another one. Nothing of a plugin is imported: a room's WEIGHTS gives for each built-in with published
        weights a "module:function" without torch that hashes them from the arguments that say where they
        are, the first of which stands for all in the spec; it raises an error of its own when they are not
        on this machine. Any other argument names a file if there is one of that name.
        """
        spec = Spec.parse(spec) if isinstance(spec, str) else spec
        args = dict(spec.args)
        if self.reads_weights(spec):
            module, _, name = importlib.import_module(self.room).WEIGHTS[spec.name].partition(":")
            weights = getattr(importlib.import_module(module), name)
            where = list(inspect.signature(weights).parameters)
            given = {key: args.pop(key) for key in where if key in args}
            args[where[0]] = weights(**typed_arguments(weights, Spec(spec.name, given)))
        for key, text in args.items():
            path = Path(text).expanduser()
            if path.is_file() or ("/" in text and path.is_dir()):
                try:
                    args[key] = content_hash(path)
                except OSError as error:
                    raise UsageError(f"{spec.name}: {key}={text} cannot be read ({error.strerror})") from None
        return str(Spec(spec.name, args, spec.of and Spec.parse(self.by_content(spec.of))))


def _sources(place: str, found: dict[str, Path]) -> dict[str, Path]:
    """{module: file} of a module (or of FILE.py) and of the hashed ones among those that it imports.

    Read from the sources: nothing is imported for it, not even the package that holds a module.
    """
    file = Path(place) if place.endswith(".py") else _file_of(place)
    if place in found or file is None:
        return found
    found[place] = file
    top = place.partition(".")[0]
    hashed = _HASHED if top == "slimbench" else (*_HASHED, top)
    package = place if file.name == "__init__.py" else place.rpartition(".")[0]
    try:
        imported = _imports(file.read_bytes(), package)
    except (SyntaxError, ValueError, ImportError):
        imported = []  # a broken file; `Plugin.load` says what is wrong with it
    for name in imported:
        if f"{name}.".startswith(tuple(f"{room}." for room in hashed)):
            _sources(name, found)
    return found


def _imports(source: bytes, package: str) -> list[str]:
    """Every name that the source of a module in `package` imports and that may be a module."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            names += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return names


def _file_of(module: str) -> Path | None:
    """The source of a module. importlib.util.find_spec would import the packages around it."""
    top, *inner = module.split(".")
    spec = importlib.util.find_spec(top)
    if spec is None:
        return None
    files = [Path(spec.origin or "")]
    if inner:
        below = [Path(folder, *inner) for folder in spec.submodule_search_locations or []]
        files = [file for path in below for file in (path / "__init__.py", Path(f"{path}.py"))]
    return next((file for file in files if file.is_file()), None)


def _module_of_file(path: Path) -> types.ModuleType:
    """Import a file by its path, once per content, under a name that cannot clash with a package."""
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    name = f"slimbench_file_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise ImportError(f"{path} is not a Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


reducers = Registry("reducer", "slimbench.reducers")
encoders = Registry("encoder", "slimbench.encoders")
tasks = Registry("task", "slimbench.tasks")
text_towers = Registry("text tower", "slimbench.text")
