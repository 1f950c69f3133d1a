"""A cohort: slides with features, grid coordinates, labels, reports, patients and splits."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from slimbench.cohorts.join import Join

SPLITS = ("train", "val", "test")
CaptionSource = Literal["report", "condensed", "template", "template-with-label"]


@dataclass(frozen=True)
class Slide:
    """What the tables say of one slide.

    label    class name, one of the cohort's `classes`, or None: no probe, but still retrieval
    report   text, or None: no retrieval and no part in training, but still a probe
    split    "train", "val" or "test"
    patches  number of patches in its feature file
    """

    id: str
    patient: str
    split: str
    patches: int
    label: str | None = None
    report: str | None = None
    site: str | None = None


@dataclass(frozen=True)
class Patches:
    """The features of one slide.

    features    [N, D] float32
    coords      [N, 2] float32 grid units (x, y), or None: the row order is the position
    lesion      [N] bool, patches known to be diagnostic, or None
    patch_size  edge of a patch in level-0 pixels: a patch's upper left corner is at coords * patch_size. None
                where its file does not say it
    """

    features: NDArray[np.float32]
    coords: NDArray[np.float32] | None = None
    lesion: NDArray[np.bool_] | None = None
    patch_size: float | None = None


@dataclass(frozen=True)
class Defaults:
    """What a sweep on this cohort uses when the user names nothing else (specs as on the command line).

    A cohort file that names no tasks gets those of them that it has the tables for (`usual_tasks`).
    """

    encoder: str = "slim-base"
    text: str = "hf"
    recipe: str = "paper"
    tasks: tuple[str, ...] = ("linear-probe", "zero-shot", "retrieval", "efficiency")


def usual_tasks(slides: Sequence[Slide], prompts: Prompts | None) -> tuple[str, ...]:
    """The tasks of `Defaults` that these slides can answer: a probe wants labels, zero-shot labels and
    prompts, retrieval two reports, all of them in the test split."""
    test = [slide for slide in slides if slide.split == "test"]
    labelled = any(slide.label is not None for slide in test)
    can = {
        "linear-probe": labelled,
        "zero-shot": labelled and prompts is not None,
        "retrieval": sum(slide.report is not None for slide in test) >= 2,
    }
    return tuple(task for task in Defaults().tasks if can.get(task, True))


@dataclass(frozen=True)
class Prompts:
    """Zero-shot wording: names of each class, and templates with the literal CLASSNAME in them.

    source  where it was taken from, as records say it; two wordings that differ in it alone are the same
    """

    names: Mapping[str, tuple[str, ...]]
    templates: tuple[str, ...] = ("CLASSNAME",)
    source: str = field(default="cohort", compare=False)


class Cohort(ABC):
    """Slides of a study and where their features lie.

    name         as a leaderboard prints it
    slides       in a fixed order (sorted by split, then id)
    classes      label names in the order that weighted kappas depend on
    dim          width of the patch features
    captions     where the reports come from; a probe on labels that the captions hold is label-supervised
    dropped      {reason: count} of slides that the tables name and the cohort leaves out
    joins        how the tables and the features fitted together; () where nothing was joined
    prompts      zero-shot wording, or None
    fingerprint  hash of all that changes a number (`fingerprint_of`): part of every cell's key
    """

    name: str
    slides: tuple[Slide, ...]
    classes: tuple[str, ...]
    dim: int
    captions: CaptionSource
    prompts: Prompts | None
    defaults: Defaults
    dropped: Mapping[str, int]
    joins: tuple[Join, ...]
    fingerprint: str

    @abstractmethod
    def patches(self, slide_id: str) -> Patches:
        """Features of one slide. Raises CohortError that names file, slide and remedy."""

    @property
    def knows_lesions(self) -> bool:
        """Whether any slide comes with patches known to be diagnostic; no feature file says so."""
        return False

    def split(self, name: str) -> tuple[Slide, ...]:
        """The slides of one split, in order."""
        return tuple(slide for slide in self.slides if slide.split == name)


def fingerprint_of(
    name: str,
    slides: Sequence[Slide],
    classes: Sequence[str],
    dim: int,
    captions: CaptionSource,
    prompts: Prompts | None,
    digests: Sequence[str],
) -> str:
    """A cohort's fingerprint; `digests` are hashes of each slide's features, in the order of `slides`."""
    wording = None if prompts is None else [dict(prompts.names), prompts.templates]
    facts = [name, classes, dim, captions, wording]
    rows = [
        [slide.id, slide.patient, slide.split, slide.label, slide.report, slide.site, digest]
        for slide, digest in zip(slides, digests, strict=True)
    ]
    return hashlib.sha256(json.dumps([facts, rows], sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class InMemoryCohort(Cohort):
    """A cohort whose features fit in memory: {slide id: Patches}. Tests and the embedded cohorts use it."""

    name: str
    slides: tuple[Slide, ...]
    classes: tuple[str, ...]
    dim: int
    captions: CaptionSource
    fingerprint: str
    features: Mapping[str, Patches] = field(repr=False)
    prompts: Prompts | None = None
    defaults: Defaults = field(default_factory=Defaults)
    dropped: Mapping[str, int] = field(default_factory=dict)
    joins: tuple[Join, ...] = ()

    @property
    def knows_lesions(self) -> bool:
        return any(slide.lesion is not None and slide.lesion.any() for slide in self.features.values())

    def patches(self, slide_id: str) -> Patches:
        return self.features[slide_id]
