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

    def find(self, slide: str, patient: str | None) -> str | None:
        """The id that means this slide: its own, also without extension or UUID, else its patient's."""
        found = self._finder.find(slide)
        return found if found is not None or patient not in self.files else patient

    def read(self, name: str) -> NDArray[np.float32]:
        """[dim] the vector under an id; CohortError for NaN, another width, or patch features."""
        file = self.files[name]
        rows = read_finite(file, name, self.dim).features
        if len(rows) != 1:
            raise CohortError(
                f"{file.path}: {name} has {len(rows):,} rows, slide features have one per slide; patch features "
                "are the `features` of a cohort file, and --encoder mean-pool their mean"
            )
        row: NDArray[np.float32] = rows[0]
        return row

    def require(self, slides: Sequence[tuple[str, str | None]]) -> None:
        """CohortError unless every (slide, patient) has a vector: rows of a table stand on the same slides."""
        without = [slide for slide, patient in slides if self.find(slide, patient) is None]
        if without:
            raise CohortError(
                f"{self.where}: no slide features of slide {without[0]} ({len(without):,} of {len(slides):,} slides "
                "have none); embed them too, or leave them out of the cohort (an empty cell in its column of "
                "splits), so that all rows stand on the same slides"
            )

    @cached_property
    def _finder(self) -> Finder:
        return Finder(self.files, self.where)


def open_features(path: str = "", card: str | None = None) -> Vectors:
    """The slide features in a folder or file, with their card if they have one.

    card  its file; default: `card.toml` in the folder, `<file>.card.toml` beside the file
    Raises UsageError without a path, CohortError for what cannot be read.
    """
    place = _place(path)
    files = find_files([place])
    first, file = next(iter(files.items()))
    return Vectors(path, files, file.head(first).dim, read_card(place, card))


def contents(path: str = "", card: str | None = None) -> str:
    """16 hex digits of what the features, and their card, hold."""
    place = _place(path)
    inside = None if place.is_file() else {file.path for file in find_files([place]).values()}
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


def _place(path: str) -> Path:
    if not path:
        raise UsageError("slide-features needs its features: slide-features:path=FOLDER_OR_FILE")
    return Path(path).expanduser()
