"""Retrieval: which report belongs to this slide, and which slide to this report?

Image-to-text ranks the distinct reports of the test split for each slide, text-to-image the slides for
each report. Identical reports (after Unicode NFC and collapsed spaces) are one target. All ranks are
expectations under random tie-breaking, see slimbench.statistics.retrieval.

    i2t_recall_at_10    share of slides whose report is among the first ten; also 1 and 5, and t2i_*
    i2t_mrr             mean reciprocal rank
    i2t_mean_rank       1 is the best; also i2t_median_rank

Intervals resample the patients of the queries; the gallery stays as it is.
"""

from __future__ import annotations

import unicodedata
from typing import Any

import numpy as np
import pandas as pd

from slimbench.cohorts.cohort import Cohort
from slimbench.errors import CohortError
from slimbench.statistics.estimates import Metric
from slimbench.statistics.means import mean_estimate, median_rank_estimate, share_estimate
from slimbench.statistics.retrieval import Ranks, rank_pairs
from slimbench.task import Evidence, Task, TaskResult

CUTOFFS = (1, 5, 10)
GALLERIES = (10, 100, 1_000, 10_000, 100_000)


class Retrieval(Task):
    """Ranks, recall and reciprocal rank in both directions on the test slides that have a report."""

    needs_alignment = True
    primary = "i2t_recall_at_10"

    def check(self, cohort: Cohort) -> None:
        _with_reports(cohort)

    def run(self, evidence: Evidence) -> TaskResult:
        embeddings = evidence.embeddings("test")
        reports, chosen = _with_reports(evidence.cohort)
        texts, first, owner = np.unique(
            [reports[number] for number in chosen], return_index=True, return_inverse=True
        )
        rows = evidence.texts(texts.tolist())
        if rows is None or embeddings.aligned is None:
            raise CohortError("the encoder is not aligned with text; retrieval needs an aligned one")
        slides = [embeddings.slides[number] for number in chosen]
        images = _unit(embeddings.aligned[chosen], [f"slide {slide.id}" for slide in slides])
        rows = _unit(rows, [f"report of slide {slides[number].id}" for number in first])
        queries = {"i2t": slides, "t2i": [slides[number] for number in first]}
        metrics, tables = [], []
        facts: dict[str, Any] = {}
        for direction, ranks in zip(("i2t", "t2i"), rank_pairs(images, rows, owner), strict=True):
            patients = [slide.patient for slide in queries[direction]]
            metrics += _estimates(direction, ranks, patients)
            facts[direction] = _facts(ranks)
            table = pd.DataFrame(
                {
                    "direction": direction,
                    "slide_id": [slide.id for slide in queries[direction]],
                    "patient": patients,
                    "rank": ranks.rank(),
                    "better": ranks.better,
                    "tied": ranks.tied,
                    "gallery": ranks.gallery,
                }
            )
            tables.append(table)
        facts |= {"images": len(images), "texts": len(texts), "without_report": len(reports) - len(chosen)}
        return TaskResult(tuple(metrics), pd.concat(tables, ignore_index=True), facts)


def _with_reports(cohort: Cohort) -> tuple[list[str], list[int]]:
    """Reports of the test slides in one line each, "" where there is none, and the places of the others."""
    reports = [one_line(slide.report or "") for slide in cohort.split("test")]
    chosen = [number for number, report in enumerate(reports) if report]
    if len(chosen) < 2:
        raise CohortError(
            f"{cohort.name}: {len(chosen)} of {len(reports)} test slides have a report; retrieval needs two, so "
            "name a reports table in the cohort file"
        )
    return reports, chosen


def one_line(report: str) -> str:
    """The text that decides whether two reports are the same."""
    return " ".join(unicodedata.normalize("NFC", report).split())


def _estimates(direction: str, ranks: Ranks, patients: list[str]) -> list[Metric]:
    gallery = int(ranks.gallery.max())
    shares = {f"recall_at_{k}": (ranks.recall(k), k) for k in CUTOFFS} | {"mrr": (ranks.reciprocal(), 0)}
    return [
        share_estimate(
            f"{direction}_{name}",
            values,
            patients,
            f"the gallery has {gallery} answers, so this is 1" if k >= gallery else None,
        )
        for name, (values, k) in shares.items()
    ] + [
        mean_estimate(f"{direction}_mean_rank", ranks.rank(), patients, 1, gallery),
        median_rank_estimate(f"{direction}_median_rank", ranks.rank(), patients),
    ]


def _facts(ranks: Ranks) -> dict[str, Any]:
    """Gallery, ties, what chance reaches, and recall in smaller random galleries."""
    chance, largest = ranks.chance(), int(ranks.gallery.max())
    return {
        "queries": len(ranks.better),
        "gallery": largest,
        "share_of_tied_queries": float((ranks.tied > 0).mean()),
        "chance": {f"recall_at_{k}": float(chance.recall(k).mean()) for k in CUTOFFS}
        | {"mrr": float(chance.reciprocal().mean()), "mean_rank": float(chance.rank().mean())},
        "recall_at_10_by_gallery": {
            str(size): float(ranks.recall_in_gallery(10, size).mean()) for size in GALLERIES if size < largest
        },
    }


def _unit(x: np.ndarray, names: list[str]) -> np.ndarray:
    """Rows of unit norm, float32; CohortError names a row that has no direction."""
    norm = np.linalg.norm(x.astype(np.float64), axis=1)
    bad = np.flatnonzero(~np.isfinite(norm) | (norm == 0))
    if len(bad):
        raise CohortError(
            f"the embedding of {names[bad[0]]} is zero or not finite ({len(bad)} of {len(x)} are); it has no rank"
        )
    unit: np.ndarray = (x / norm[:, None]).astype(np.float32)
    return unit
