"""Saliency: does the reducer keep the patches that carry the diagnosis?

For cohorts whose diagnostic patches are known (the embedded digits, annotated regions).

    lesion_recall       share of diagnostic patches that are kept to the last block, mean over slides
    lesion_enrichment   recall over the share of all patches kept: 1 is what random pruning reaches
    score_auroc         AUROC of the first module's scores, diagnostic against other patches, mean over slides

For a merger a diagnostic patch counts as kept when at least half of the patches in its token are
diagnostic: it is then still seen as what it is. That is another quantity than a pruner's recall, and
its note says so.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import rankdata

from slimbench.cohorts.cohort import Cohort
from slimbench.errors import CohortError
from slimbench.statistics.estimates import Metric
from slimbench.statistics.means import share_estimate
from slimbench.task import Evidence, Task, TaskResult
from slimbench.trace import Trace


class Saliency(Task):
    """Lesion recall among the kept tokens of the test slides, beside what chance gives."""

    needs_patches = True
    primary = "lesion_recall"

    def check(self, cohort: Cohort) -> None:
        if not cohort.knows_lesions:
            raise CohortError(f"{cohort.name} knows no diagnostic patches; leave the task saliency out")

    def run(self, evidence: Evidence) -> TaskResult:
        patient = {slide.id: slide.patient for slide in evidence.cohort.split("test")}
        rows = []
        merged = False
        for slide_id, trace in evidence.traces("test").items():
            truth = evidence.slide(slide_id).truth
            if truth is None or not bool(truth.any()) or bool(truth.all()):
                continue
            lesion = truth.cpu().numpy()
            token = trace.token_of_patch().numpy()
            merged |= bool((np.bincount(token[token >= 0]) > 1).any())
            rows.append(
                {
                    "slide_id": slide_id,
                    "patient": patient[slide_id],
                    "patches": len(lesion),
                    "lesion_patches": int(lesion.sum()),
                    "kept": int((token >= 0).sum()),
                    "recall": recall(token, lesion),
                    "score_auroc": first_scores_auroc(trace, lesion),
                }
            )
        if not rows:
            raise CohortError(
                f"{evidence.cohort.name} knows no diagnostic patches; leave the task saliency out"
            )
        table = pd.DataFrame(rows)
        share = float((table["kept"] / table["patches"]).mean())
        note = "a merged patch counts while its token is at least half diagnostic" if merged else None
        found = share_estimate("lesion_recall", table["recall"].to_numpy(), table["patient"].tolist(), note)
        scored = table.dropna(subset="score_auroc")
        ranked = Metric("score_auroc", None, 0, note="this reducer has no score")
        if len(scored):
            ranked = share_estimate(
                "score_auroc", scored["score_auroc"].to_numpy(), scored["patient"].tolist()
            )
        enrichment = Metric("lesion_enrichment", float(table["recall"].mean()) / share, len(table))
        return TaskResult(
            (found, enrichment, ranked),
            table,
            {"kept_share": share, "chance_recall": share},
        )


def recall(token: NDArray[np.int64], lesion: NDArray[np.bool_]) -> float:
    """Share of lesion patches [P] whose token (row per patch, -1 = dropped) is at least half lesion."""
    kept = token >= 0
    size = np.bincount(token[kept])
    diagnostic = np.bincount(token[kept], weights=lesion[kept], minlength=len(size))
    seen = np.zeros(len(lesion), bool)
    seen[kept] = 2 * diagnostic[token[kept]] >= size[token[kept]]
    return float(seen[lesion].mean())


def first_scores_auroc(trace: Trace, lesion: NDArray[np.bool_]) -> float | None:
    """AUROC of the scores of the first module, the only one that has seen every patch (ties count half)."""
    if not trace.assigns:
        return None
    first = min(trace.assigns)
    if first not in trace.scores:
        return None
    ranks = rankdata(trace.scores[first].numpy())
    positives = int(lesion.sum())
    negatives = len(lesion) - positives
    return float((ranks[lesion].sum() - positives * (positives + 1) / 2) / (positives * negatives))
