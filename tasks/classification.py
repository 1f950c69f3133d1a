"""What the classification tasks share: which slides take part, and their metrics and predictions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from slimbench.cohorts.cohort import SPLITS, Cohort, Slide
from slimbench.cohorts.splits import SplitRule, make_splits
from slimbench.errors import CohortError
from slimbench.seeds import seed_of
from slimbench.statistics.bootstrap import DRAWS
from slimbench.statistics.estimates import estimate
from slimbench.statistics.metrics import IntArray
from slimbench.statistics.probe import Labelled
from slimbench.task import Embeddings, Evidence, TaskResult

HELD_OUT = 0.15  # share of the training slides that validate where a cohort has no val split


@dataclass(frozen=True)
class LabelRule:
    """Which class a cohort's label stands for. classes: in the order that weighted kappas depend on;
    of: {label: class}, labels outside it take no part."""

    classes: tuple[str, ...]
    of: Mapping[str, str]

    @classmethod
    def as_given(cls, cohort: Cohort) -> LabelRule:
        return cls(cohort.classes, {name: name for name in cohort.classes})


@dataclass(frozen=True)
class Part:
    """Labelled slides of one split, their label the class: x [n, D] float32, y [n] index into the classes."""

    slides: tuple[Slide, ...]
    x: NDArray[np.float32]
    y: IntArray

    @property
    def labelled(self) -> Labelled:
        return Labelled(self.x, self.y)

    @property
    def patients(self) -> list[str]:
        return [slide.patient for slide in self.slides]

    def take(self, rows: NDArray[np.bool_]) -> Part:
        """The slides where `rows` [n] is true."""
        kept = tuple(slide for slide, keep in zip(self.slides, rows, strict=True) if keep)
        return Part(kept, self.x[rows], self.y[rows])

    def among(self, classes: Sequence[int]) -> Part:
        """The slides of `classes`, renumbered by their place in it."""
        kept = self.take(np.isin(self.y, classes))
        return Part(kept.slides, kept.x, np.searchsorted(classes, kept.y))

    def split(self, rule: SplitRule) -> dict[str, Part]:
        """{"train", "val", "test"}: the parts of a made split."""
        made = make_splits(self.slides, rule)
        place = np.array([made.get(slide.id) for slide in self.slides])
        return {name: self.take(place == name) for name in SPLITS}


@dataclass(frozen=True)
class Splits:
    """Train, validation and test slides over the K classes that occur in train, in the rule's order."""

    train: Part
    val: Part
    test: Part
    classes: tuple[str, ...]
    facts: Mapping[str, Any]


def part(embeddings: Embeddings, rule: LabelRule) -> Part:
    """The slides whose label stands for a class."""
    index = {name: number for number, name in enumerate(rule.classes)}
    y = [index.get(rule.of.get(slide.label or "", ""), -1) for slide in embeddings.slides]
    slides = tuple(
        replace(slide, label=rule.classes[k] if k >= 0 else None)
        for slide, k in zip(embeddings.slides, y, strict=True)
    )
    every = Part(slides, embeddings.embedding, np.asarray(y, dtype=np.int64))
    finite = np.isfinite(every.x).all(axis=1)
    if not finite.all():
        slide = every.slides[int(np.argmin(finite))]
        raise CohortError(f"the embedding of slide {slide.id} is not finite; see how its encoder was trained")
    return every.take(every.y >= 0)


def splits(evidence: Evidence, rule: LabelRule, *, validate: bool) -> Splits:
    """Labelled slides of the cell's cohort.

    validate  hold out 15 % of the training slides (whole patients) where the cohort has no val split
    Raises CohortError where no slide is left to train or test on.
    """
    given = {name: evidence.embeddings(name) for name in SPLITS}
    found = _splits(evidence.cohort, given, rule, validate)
    return replace(found, facts={**found.facts, "label_supervised": label_supervised(evidence)})


def splits_of_tables(cohort: Cohort, rule: LabelRule, *, validate: bool, classes: int = 1) -> Splits:
    """`splits` before anything is encoded, with rows of width 0: for Task.check.

    classes  how many the training slides must have
    Raises CohortError as `splits` does, and for fewer classes.
    """
    found = _splits(cohort, {name: tabled(cohort, name) for name in SPLITS}, rule, validate)
    if len(found.classes) < classes:
        raise CohortError(
            f"{cohort.name}: all {len(found.train.y)} labelled training slides are {found.classes[0]}; a probe "
            f"needs {classes} classes, so check the label column and the splits"
        )
    return found


def tabled(cohort: Cohort, split: str) -> Embeddings:
    """The slides of a split, with embeddings of width 0."""
    slides = cohort.split(split)
    return Embeddings(slides, np.empty((len(slides), 0), np.float32), None, ())


def _splits(cohort: Cohort, given: Mapping[str, Embeddings], rule: LabelRule, validate: bool) -> Splits:
    parts = {name: part(embeddings, rule) for name, embeddings in given.items()}
    train, val, source = parts["train"], parts["val"], "the cohort's val split"
    if validate and len(train.y) and not len(val.y):
        seed = seed_of("validation", cohort.fingerprint)
        made = train.split(SplitRule((1 - HELD_OUT, HELD_OUT, 0.0), minimum=1, seed=seed))
        train, val = made["train"], made["val"]
        source = f"{HELD_OUT:.0%} of the training slides, whole patients, stratified"
    known = np.unique(train.y)
    train, val, test = (each.among(known.tolist()) for each in (train, val, parts["test"]))
    for name, each in (("train", train), ("test", test)):
        if not len(each.y):
            raise CohortError(
                f"{cohort.name}: none of the {len(given[name].slides)} {name} slides has a label "
                f"among the {len(known) or len(rule.classes)} classes; check the label column and the splits"
            )
    left_out = {
        "no_class": {name: len(given[name].slides) - len(parts[name].y) for name in given},
        "class_absent_from_train": dict(
            Counter(rule.classes[k] for k in parts["test"].y.tolist() if k not in known)
        ),
    }
    facts = {
        "n": {"train": len(train.y), "val": len(val.y), "test": len(test.y)},
        "left_out": left_out,
        "validation": source if len(val.y) else None,
    }
    return Splits(train, val, test, tuple(rule.classes[k] for k in known), facts)


def label_supervised(evidence: Evidence) -> bool:
    """Whether the encoder was aligned with captions that hold the label."""
    return evidence.logit_scale is not None and evidence.cohort.captions == "template-with-label"


def predictions(test: Part, log_p: NDArray[np.floating], classes: Sequence[str]) -> pd.DataFrame:
    """slide_id, patient, label, predicted, log_probabilities (float32 lists over `classes`), row per slide."""
    log_p = log_p.astype(np.float32)
    return pd.DataFrame(
        {
            "slide_id": [slide.id for slide in test.slides],
            "patient": test.patients,
            "label": [classes[k] for k in test.y],
            "predicted": [classes[k] for k in log_p.argmax(axis=1)],
            "log_probabilities": list(log_p),
        }
    )


def classified(
    test: Part, log_p: NDArray[np.floating], classes: Sequence[str], facts: Mapping[str, Any]
) -> TaskResult:
    """All metrics with intervals, from the log-probabilities [n, K] as they are stored, in float32."""
    found = estimate(test.y, log_p.astype(np.float32), test.patients, classes, draws=DRAWS)
    return TaskResult(
        found.metrics,
        predictions(test, log_p, classes),
        {"classes": list(classes), **facts, "intervals": dict(found.facts)},
    )
