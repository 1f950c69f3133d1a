"""Other people's words (slide ids, plugin names, messages) on their way into a format that obeys some of them."""

from __future__ import annotations

import re

_ESCAPE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(\x07|\x1b\\)?")
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "Δ": r"$\Delta$",
    "−": "$-$",
    "≈": r"$\approx$",
    "↓": r"$\downarrow$",
    "–": "--",
    '"': "''",
}


def plain(text: str) -> str:
    """`text` without what a terminal would obey: escape sequences, other controls, changes of direction."""
    return _CONTROL.sub("", _ESCAPE.sub("", text))


def one_line(text: str) -> str:
    """`plain`, on one line."""
    return " ".join(plain(text).split())


def markdown(text: str) -> str:
    """`text` as a Markdown table cell that shows it as it is, also where HTML is let through."""
    entities = one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~$])", r"\\\1", entities)


def latex(text: str) -> str:
    """`text` as LaTeX that prints it as it is, a minus as a minus."""
    minus = re.sub(r"(?<!\S)-(?=\d)", "−", one_line(text))
    return "".join(_LATEX.get(character, character) for character in minus)


def csv_text(text: str) -> str:
    """`text` as a CSV field that no spreadsheet runs as a formula (a quote goes before = + - @)."""
    cleaned = one_line(text)
    return f"'{cleaned}" if cleaned[:1] in ("=", "+", "-", "@") else cleaned
