"""Zero-shot: is a slide nearest, in the space shared with text, to the words of its diagnosis?

TITAN's recipe: every name of a class in every template, each text normalised, their mean normalised
again; the class of highest cosine with the slide. The argmax needs no temperature, AUROC does: TITAN's
softmax has none, CONCH's the learned one. Ours has the learned one unless `logit_scale` says otherwise.

A slide whose embedding is zero (text-only, no report) is near no class. It stays, so that rows stand on the same
slides, with equal probabilities of which its own class has the least by a hair: it counts as wrong.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from dataclasses import replace

import numpy as np

from slimbench.cohorts.cohort import Cohort, Prompts
from slimbench.cohorts.prompts import shipped_for
from slimbench.errors import CohortError
from slimbench.task import Evidence, Task, TaskResult
from slimbench.tasks.classification import LabelRule, classified, label_supervised, part, tabled

HAIR = 1e-5  # in log-probability, which is stored in float32


class ZeroShot(Task):
    """The seven metrics of the prompts' argmax on the test slides.

    logit_scale  factor on the cosines before the softmax; 1 is TITAN's; None: the learned one
    """

    needs_alignment = True
    primary = "balanced_accuracy"

    def __init__(self, logit_scale: float | None = None) -> None:
        self.logit_scale = logit_scale

    def check(self, cohort: Cohort) -> None:
        _prompts(cohort)
        if not len(part(tabled(cohort, "test"), LabelRule.as_given(cohort)).y):
            raise CohortError(f"{cohort.name}: no test slide has a label; zero-shot has nothing to measure")

    def run(self, evidence: Evidence) -> TaskResult:
        cohort = evidence.cohort
        wording = _prompts(cohort)
        names, templates = wording.names, wording.templates
        texts = {
            label: [template.replace("CLASSNAME", name) for name in names[label] for template in templates]
            for label in cohort.classes
        }
        flat = sorted({text for group in texts.values() for text in group})
        rows = evidence.texts(flat)
        embeddings = evidence.embeddings("test")
        if rows is None or embeddings.aligned is None:
            raise CohortError("the encoder is not aligned with text; zero-shot needs an aligned one")
        row = dict(zip(flat, _normalised(rows.astype(np.float64)), strict=True))
        prompts = np.stack(
            [np.mean([row[text] for text in texts[label]], axis=0) for label in cohort.classes]
        )
        test = part(replace(embeddings, embedding=embeddings.aligned), LabelRule.as_given(cohort))
        if not len(test.y):
            raise CohortError(f"{cohort.name}: no test slide has a label; zero-shot has nothing to measure")
        scale = self.logit_scale if self.logit_scale is not None else evidence.logit_scale
        assert scale is not None
        logits = scale * _normalised(test.x.astype(np.float64)) @ _normalised(prompts).T
        silent = np.flatnonzero(~test.x.any(axis=1))
        logits[silent, test.y[silent]] = -HAIR
        log_p = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
        facts = {
            "logit_scale": scale,
            "wording": wording.source,
            "wording_hash": hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16],
            "templates": len(templates),
            "names": sum(len(names[label]) for label in cohort.classes),
            "prompts_shared_by_classes": _collisions(texts),
            "left_out": len(embeddings.slides) - len(test.y),
            "zero_embeddings": len(silent),
            "label_supervised": label_supervised(evidence),
        }
        result = classified(test, log_p, cohort.classes, facts)
        if not len(silent):
            return result
        note = f"{len(silent)} of {len(test.y)} slides have a zero embedding and count as wrong"
        return replace(
            result,
            metrics=tuple(
                replace(each, note=f"{each.note}; {note}" if each.note else note) for each in result.metrics
            ),
        )


def _prompts(cohort: Cohort) -> Prompts:
    """The cohort's wording; CohortError unless every class has some."""
    if cohort.prompts is None:
        shipped = shipped_for(cohort.classes)
        remedy = f'write prompts = "{shipped}" in' if shipped else "name them in"
        raise CohortError(f"{cohort.name} has no prompts; {remedy} the cohort file, or leave this task out")
    missing = [name for name in cohort.classes if not cohort.prompts.names.get(name)]
    if missing:
        raise CohortError(
            f"{cohort.name}: no prompt for class {', '.join(missing)}; add names for it under prompts"
        )
    return cohort.prompts


def _normalised(x: np.ndarray) -> np.ndarray:
    unit: np.ndarray = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    return unit


def _collisions(texts: dict[str, list[str]]) -> dict[str, list[str]]:
    """{text: classes} of every text that two classes share."""
    owners: dict[str, set[str]] = defaultdict(set)
    for label, group in texts.items():
        for text in group:
            owners[text].add(label)
    return {text: sorted(labels) for text, labels in sorted(owners.items()) if len(labels) > 1}
