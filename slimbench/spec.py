"""How a plugin, a schedule or a recipe is written: `NAME`, `NAME:key=value`, `FILE.py:CLASS:key=value`.

One that wraps another has it in brackets: `reverse(cropr:order=score)`.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from slimbench.errors import UsageError


@dataclass(frozen=True)
class Spec:
    """A plugin as a user writes it: its name, the arguments behind the colon, still as text, and the
    plugin that it wraps."""

    name: str
    args: Mapping[str, str] = field(default_factory=dict)
    of: Spec | None = None

    @classmethod
    def parse(cls, text: str) -> Spec:
        """Read `NAME[(SPEC)][:key=value,...]`, where NAME may be `FILE.py:CLASS`.

        >>> Spec.parse("tome-local:window=256").args
        {'window': '256'}
        >>> Spec.parse("mine.py:Mine").name
        'mine.py:Mine'
        >>> str(Spec.parse("once(cropr:order=score):after=2").of)
        'cropr:order=score'
        """
        text = text.strip()
        before, bracket, rest = text.partition("(")
        if bracket and "=" not in before:
            inside, closed, after = rest.rpartition(")")
            if not closed or after[:1] not in ("", ":"):
                raise UsageError(f"{text!r}: the brackets are not closed; write NAME(SPEC):key=value")
            outside = cls.parse(before + after)
            return cls(outside.name, outside.args, cls.parse(inside))
        parts = text.split(":")
        name = parts.pop(0)
        if name.endswith(".py"):
            if not parts or not parts[0].strip() or "=" in parts[0]:
                raise UsageError(f"{text!r}: a file needs its class behind a colon, as in {name}:MyReducer")
            name = f"{name}:{parts.pop(0)}"
        args = {}
        for pair in ",".join(parts).split(",") if parts else ():
            key, equals, value = pair.partition("=")
            if not equals or not key.strip():
                raise UsageError(f"{text!r}: {pair!r} is no argument; write {name}:key=value,key=value")
            args[key.strip()] = value.strip()
        return cls(name, args)

    def __str__(self) -> str:
        name = f"{self.name}({self.of})" if self.of else self.name
        pairs = ",".join(f"{key}={value}" for key, value in sorted(self.args.items()))
        return f"{name}:{pairs}" if pairs else name


def typed_arguments(
    factory: Callable[..., Any], spec: Spec, reserved: set[str] | None = None
) -> dict[str, Any]:
    """The spec's arguments, converted to the types in the factory's signature.

    Knows int, float, bool, str, their optional forms, and tuples of them written with plus signs
    (`segments=64+512`). UsageError for an unknown argument or a value of another type.
    """
    signature = inspect.signature(factory)
    hints = typing.get_type_hints(factory.__init__ if inspect.isclass(factory) else factory)
    open_names = [
        name
        for name, parameter in signature.parameters.items()
        if name not in (reserved or set())
        and parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    typed = {}
    for key, text in spec.args.items():
        if key not in open_names:
            raise UsageError(
                f"{spec.name} takes no argument {key!r}; it takes {', '.join(open_names) or 'none'}"
            )
        try:
            typed[key] = _convert(text, hints.get(key, str))
        except ValueError as error:
            raise UsageError(f"{spec.name}: {key}={text} is not {error}") from None
    return typed


def _convert(text: str, hint: Any) -> Any:
    """`text` as a value of type `hint`; ValueError says what was expected."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if text.lower() == "none" and type(None) in inner:
            return None
        return _convert(text, next(kind for kind in inner if kind is not type(None)))
    if origin is tuple:
        return tuple(_convert(part, inner[0]) for part in text.split("+"))
    if origin is typing.Literal:
        if text not in inner:
            raise ValueError(f"one of {', '.join(map(str, inner))}")
        return text
    if hint is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError("true or false")
        return text.lower() == "true"
    if hint in (int, float):
        try:
            return hint(text)
        except ValueError:
            raise ValueError("a whole number" if hint is int else "a number") from None
    return text
