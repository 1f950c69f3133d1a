"""Joining tables and feature files by slide id, with or without the parts that releases leave out.

TCGA's ids come as `TCGA-A7-A0CJ-01Z-00-DX2.0DA1D5CC-...` in one release and without the UUID, with
`.svs`, or with the UUID in lower case in the next.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from slimbench.errors import CohortError

_EXTENSION = re.compile(r"\.(svs|tiff?|ndpi|mrxs|scn|czi|bif|dcm|h5|pt|csv)$", re.IGNORECASE)
_UUID = re.compile(r"\.([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})$", re.IGNORECASE)
_TCGA_PATIENT = re.compile(r"TCGA-\w{2}-\w{4}(?=-|$)")


@dataclass(frozen=True)
class Join:
    """How a join went: `matched` of `total` slides found something, `first_without` did not.

    what    what was joined: "features", "reports", ...
    loose   how many matched only after an extension or a UUID was left out
    unused  how many rows or files no slide asked for
    """

    what: str
    matched: int
    total: int
    loose: int
    unused: int
    first_without: str | None

    def __str__(self) -> str:
        text = f"{self.what}: {self.matched:,} of {self.total:,} slides matched"
        if self.loose:
            text += f", {self.loose:,} of them without extension or UUID"
        if self.first_without is not None:
            text += f"; first without: {self.first_without}"
        return text + (f"; {self.unused:,} not asked for" if self.unused else "")


class Finder:
    """Finds a slide among the ids of another table or folder.

    The same id wins; otherwise the same id without an image extension and, if one of the two
    has none, without the UUID. An id that would fit two is a CohortError.
    """

    def __init__(self, ids: Iterable[str], where: str) -> None:
        self.where = where
        self.exact = set(ids)
        self._short: dict[str, list[str]] = {}
        for name in self.exact:
            self._short.setdefault(_parts(name)[0], []).append(name)

    def find(self, slide_id: str) -> str | None:
        """The id in the other place that means this slide, or None."""
        if slide_id in self.exact:
            return slide_id
        stem, uuid = _parts(slide_id)
        fits = [name for name in self._short.get(stem, ()) if not uuid or _parts(name)[1] in (uuid, "")]
        if len(fits) > 1:
            one, other = sorted(fits)[:2]
            raise CohortError(
                f"{self.where}: slide {slide_id} fits both {one} and {other}; "
                "write the whole id in both places"
            )
        return fits[0] if fits else None


def join(slides: Iterable[str], ids: Iterable[str], what: str, where: str) -> tuple[Mapping[str, str], Join]:
    """{slide: id in the other place} for the slides that have one there, and how it went."""
    finder = Finder(ids, where)
    found = {slide: finder.find(slide) for slide in slides}
    matched = {slide: name for slide, name in found.items() if name is not None}
    without = next((slide for slide, name in found.items() if name is None), None)
    loose = sum(slide != name for slide, name in matched.items())
    unused = len(finder.exact) - len(set(matched.values()))
    return matched, Join(what, len(matched), len(found), loose, unused, without)


def tcga_patient(slide_id: str) -> str | None:
    """The patient of a TCGA barcode (its first 12 characters), or None for another kind of id."""
    match = _TCGA_PATIENT.match(slide_id)
    return match.group() if match else None


def bad_id(slide_id: str) -> str | None:
    """Why an id cannot be used as one, or None: ids become file names and table cells."""
    if len(slide_id.encode(errors="replace")) > 200:
        return "is longer than 200 bytes"
    if slide_id in (".", "..") or "/" in slide_id or "\\" in slide_id:
        return "is a path, not a name"
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in slide_id):
        return "holds a control character"
    if slide_id != slide_id.strip():
        return "begins or ends with a space"
    if slide_id.startswith("-"):
        return "begins with a dash"
    if unicodedata.normalize("NFC", slide_id) != slide_id:
        return "is not in Unicode's composed form (NFC)"
    return None


def _parts(slide_id: str) -> tuple[str, str]:
    """An id without extension and UUID, and the UUID in lower case or ""."""
    stem = _EXTENSION.sub("", slide_id)
    match = _UUID.search(stem)
    return (stem[: match.start()], match.group(1).lower()) if match else (stem, "")
