"""Slide embeddings that other programs made: their files, their card, and a hash of both; imports no torch.

    titan.pkl, titan.pkl.card.toml                            one file of many slides
    slide_features_titan/<slide>.h5, .../card.toml            a folder

The card says what a file does not: "the" embedding of an encoder is several (docs/encoders.md).
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from slimbench.cohorts.findings import nearest
from slimbench.cohorts.join import Finder
from slimbench.cohorts.readers.features import find_files, read_finite
from slimbench.cohorts.readers.file import FeatureFile
from slimbench.errors import CohortError, UsageError
from slimbench.files import content_hash

CARD = "card.toml"


class Card(BaseModel):
    """What slide embeddings are, as whoever made them says.

    encoder           as a table shall name it: "TITAN", "Prov-GigaPath, mean of the last layer"
    pooling, layer    "cls", "mean", ...; which block's output
    coordinate_scale  what the encoder was given as positions: "level-0 pixels / 256"
    precision         of its forward pass: "fp16"
    notes             anything else
    """

    model_config = ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True)

    encoder: str = Field(min_length=1)
    pooling: str | None = None
    layer: str | None = None
    coordinate_scale: str | None = None
    precision: str | None = None
    notes: str | None = None


@dataclass(frozen=True)
class Vectors:
    """One vector per slide, or per patient.

    where  the folder or file, as it was named
    files  {id: the file that holds its row}
    """

    where: str
    files: Mapping[str, FeatureFile] = field(repr=False)
    dim: int
    card: Card | None

    def names(self, slides: Sequence[tuple[str, str | None]]) -> dict[str, str]:
        """{slide: the id that means it} of (slide, patient): its own, also without extension or UUID, else its
        patient's, unless that is the own one of another of the slides.

        CohortError if one has neither: rows of a table stand on the same slides.
        """
        own = {slide: self._finder.find(slide) for slide, _ in slides}
        of_patients = self.files.keys() - own.values()
        found = {
            slide: own[slide] or (patient if patient in of_patients else None) for slide, patient in slides
        }
        without = [slide for slide, name in found.items() if name is None]
        if without:
            raise CohortError(
                f"{self.where}: no slide features of slide {without[0]} ({len(without):,} of {len(slides):,} slides "
                "have none); embed them too, or leave them out of the cohort (an empty cell in its column of "
                "splits), so that all rows stand on the same slides"
            )
        return {slide: name for slide, name in found.items() if name is not None}

    def read(self, name: str) -> NDArray[np.float32]:
        """[dim] the vector under an id; CohortError for NaN, another width, or patch features."""
        file = self.files[name]
        rows = read_finite(file, name, self.dim).features
        _require_one_row(file, name, len(rows))
        row: NDArray[np.float32] = rows[0]
        return row

    @cached_property
    def _finder(self) -> Finder:
        return Finder(self.files, self.where)


def open_features(path: str = "", card: str | None = None) -> Vectors:
    """The slide features in a folder or file, with their card if they have one.

    card  its file; default: `card.toml` in the folder, `<file>.card.toml` beside the file
    Raises UsageError without a path, CohortError for what cannot be read and for patch features.
    """
    place, files, dim = _found(path)
    return Vectors(path, files, dim, read_card(place, card))


def contents(path: str = "", card: str | None = None) -> str:
    """16 hex digits of what the features, and their card, hold; raises as `open_features`."""
    place, files, _ = _found(path)
    inside = None if place.is_file() else {file.path for file in files.values()}
    held = content_hash(place, inside)
    read = read_card(place, card)
    return (
        held if read is None else hashlib.sha256(f"{held}{read.model_dump_json()}".encode()).hexdigest()[:16]
    )


def read_card(place: Path, card: str | None = None) -> Card | None:
    """The card of the features at `place`, None where there is none; CohortError for one that is wrong."""
    usual = place / CARD if place.is_dir() else place.with_name(f"{place.name}.{CARD}")
    if card is None and not usual.is_file():
        return None
    file = usual if card is None else Path(card).expanduser()
    try:
        return Card.model_validate(tomllib.loads(file.read_text(encoding="utf-8")))
    except OSError as error:
        raise CohortError(f"no card {file} ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CohortError(f"{file}: {' '.join(str(error).split())}") from None
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            raise CohortError(
                f"{file}: a card has no key {key!r}; {nearest(key, Card.model_fields)}"
            ) from None
        raise CohortError(f'{file}: {key}: {first["msg"]}; a card is encoder = "...", and more') from None


def _found(path: str) -> tuple[Path, Mapping[str, FeatureFile], int]:
    """Where the features lie, their files and width. Patch features are refused by the first slide: hundreds of
    gigabytes are not hashed to find that out."""
    if not path:
        raise UsageError("slide-features needs its features: slide-features:path=FOLDER_OR_FILE")
    place = Path(path).expanduser()
    files = find_files([place])
    first, file = next(iter(files.items()))
    head = file.head(first)
    _require_one_row(file, first, head.patches)
    return place, files, head.dim


def _require_one_row(file: FeatureFile, name: str, rows: int) -> None:
    if rows != 1:
        raise CohortError(
            f"{file.path}: {name} has {rows:,} rows, slide features have one per slide; patch features "
            "are the `features` of a cohort file, and --encoder mean-pool their mean"
        )
