"""Seven metrics of a classification, each computed for B weightings of the slides at once.

One weighting in which every slide counts once gives the point estimate; the bootstrap, the jackknife
and the swap test are other weightings of the same counts, so a metric is written down once.

The label set is frozen: K classes in the trained order, whatever occurs among truths and predictions.
Weighted kappas depend on that order (quadratic is TITAN's `kappa`, linear its `nw_kappa`). An entry that
is undefined for a weighting is NaN here; slimbench.statistics.estimates turns it into None and a reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

MIN_SUPPORT = 10  # test slides that a class needs to enter `balanced_accuracy_10`
_CHUNK = 500  # weightings per product in `auroc`: bounds its memory


@dataclass(frozen=True)
class Weighting:
    """How often each patient's slides count, B times over.

    weights  [B, G] float32, whole numbers
    group    [n] int64, the patient of each slide
    """

    weights: NDArray[np.float32]
    group: IntArray

    @classmethod
    def once(cls, n: int) -> Weighting:
        """Each of n slides counts once; B = 1."""
        return cls(np.ones((1, 1), np.float32), np.zeros(n, np.int64))

    def __len__(self) -> int:
        return len(self.weights)


@dataclass(frozen=True)
class Confusion:
    """Counts of the (truth, prediction) pairs that occur, for B weightings.

    truth, predicted  [P] int64, the pairs
    counts            [B, P] float64
    support           [K] int64, test slides of each class when every slide counts once
    """

    truth: IntArray
    predicted: IntArray
    counts: FloatArray
    support: IntArray

    @classmethod
    def of(cls, truth: IntArray, predicted: IntArray, classes: int, weighting: Weighting) -> Confusion:
        """Count n slides. `truth` and `predicted` are [n] in [0, classes)."""
        codes, pair = np.unique(truth * classes + predicted, return_inverse=True)
        of_group = np.zeros((weighting.weights.shape[1], len(codes)), np.float32)
        np.add.at(of_group, (weighting.group, pair), 1)
        # float32 counts are exact below 2^24 slides
        counts = (weighting.weights @ of_group).astype(np.float64)
        return cls(codes // classes, codes % classes, counts, np.bincount(truth, minlength=classes))

    @property
    def classes(self) -> int:
        return len(self.support)

    @cached_property
    def total(self) -> FloatArray:
        """[B] slides."""
        total: FloatArray = self.counts.sum(axis=1)
        return total

    @cached_property
    def rows(self) -> FloatArray:
        """[B, K] slides of each class."""
        return self.counts @ np.eye(self.classes)[self.truth]

    @cached_property
    def columns(self) -> FloatArray:
        """[B, K] slides predicted as each class."""
        return self.counts @ np.eye(self.classes)[self.predicted]

    @cached_property
    def hits(self) -> FloatArray:
        """[B, K] slides of each class that were predicted right."""
        right = (self.truth == self.predicted)[:, None]
        return self.counts @ (np.eye(self.classes)[self.truth] * right)


def accuracy(confusion: Confusion) -> FloatArray:
    """[B] share of slides predicted right."""
    return _ratio(confusion.hits.sum(axis=1), confusion.total)


def balanced_accuracy(confusion: Confusion, least: int = 1) -> FloatArray:
    """[B] mean recall over the classes present, of those with at least `least` test slides."""
    present = (confusion.rows > 0) & (confusion.support >= least)
    recall = _ratio(confusion.hits, np.where(present, confusion.rows, 0))
    return _ratio(np.where(present, recall, 0).sum(axis=1), present.sum(axis=1))


def weighted_f1(confusion: Confusion) -> FloatArray:
    """[B] F1 of each class, weighted by its slides; 0 for a class that is neither there nor predicted."""
    both = confusion.rows + confusion.columns
    f1 = 2 * confusion.hits / np.where(both > 0, both, 1)
    return _ratio((confusion.rows * f1).sum(axis=1), confusion.total)


def kappa(confusion: Confusion, distance: Callable[[IntArray], NDArray[np.number]]) -> FloatArray:
    """[B] Cohen's kappa, disagreements weighted by `distance(i - j)` of their class indices.

    Undefined where chance alone leaves no disagreement: one class, always predicted.
    """
    index = np.arange(confusion.classes)
    weight = distance(index[:, None] - index[None, :]).astype(np.float64)
    observed = confusion.counts @ weight[confusion.truth, confusion.predicted]
    expected = _ratio(((confusion.rows @ weight) * confusion.columns).sum(axis=1), confusion.total)
    return 1 - _ratio(observed, expected)


COUNTED: dict[str, Callable[[Confusion], FloatArray]] = {
    "accuracy": accuracy,
    "balanced_accuracy": balanced_accuracy,
    "balanced_accuracy_10": lambda confusion: balanced_accuracy(confusion, MIN_SUPPORT),
    "kappa_quadratic": lambda confusion: kappa(confusion, np.square),
    "kappa_linear": lambda confusion: kappa(confusion, np.abs),
    "kappa_unweighted": lambda confusion: kappa(confusion, lambda gap: gap != 0),
    "weighted_f1": weighted_f1,
}
NAMES = (*COUNTED, "auroc")


def auroc(truth: IntArray, scores: NDArray[np.floating], weighting: Weighting) -> FloatArray:
    """[B] macro one-vs-one AUROC (Hand and Till 2001) over the ordered pairs of classes present.

    scores [n, K]: probabilities, or log-probabilities, which saturate less; they are only compared.
    Equals scikit-learn's roc_auc_score(multi_class="ovo", average="macro", labels=range(K)).
    Holds the comparison matrices of all classes: 4 n^2 bytes.
    """
    order = np.argsort(truth, kind="stable")
    present, starts = np.unique(truth[order], return_index=True)
    sorted_scores, group = scores[order], weighting.group[order]
    spans = [slice(start, stop) for start, stop in zip(starts, [*starts[1:], len(order)], strict=True)]
    wins = []
    for k, span in zip(present, spans, strict=True):
        own, other = sorted_scores[span, k, None], sorted_scores[None, :, k]
        wins.append((own > other).astype(np.float32) + np.float32(0.5) * (own == other))
    result = np.full(len(weighting), np.nan)
    for first in range(0, len(weighting), _CHUNK):
        chunk = slice(first, first + _CHUNK)
        weights = weighting.weights[chunk][:, group]
        size = np.add.reduceat(weights, starts, axis=1, dtype=np.float64)
        total, pairs = np.zeros(len(weights)), np.zeros(len(weights))
        for k, (span, won) in enumerate(zip(spans, wins, strict=True)):
            against = np.add.reduceat((weights[:, span] @ won) * weights, starts, axis=1, dtype=np.float64)
            sizes = size * size[:, k, None]
            sizes[:, k] = 0
            total += np.where(sizes > 0, _ratio(against, sizes), 0).sum(axis=1)
            pairs += (sizes > 0).sum(axis=1)
        result[chunk] = _ratio(total, pairs)
    return result


def measure(
    names: Iterable[str],
    truth: IntArray,
    log_p: NDArray[np.floating],
    weighting: Weighting | None = None,
) -> dict[str, FloatArray]:
    """{name: [B]} of the metrics in `names`, each slide counting once if there is no weighting.

    truth [n] in [0, K), log_p [n, K]; the prediction is the first class of highest log_p.
    """
    weighting = weighting or Weighting.once(len(truth))
    confusion = Confusion.of(truth, log_p.argmax(axis=1), log_p.shape[1], weighting)
    return {
        name: auroc(truth, log_p, weighting) if name == "auroc" else COUNTED[name](confusion)
        for name in names
    }


def _ratio(top: NDArray[np.number], bottom: NDArray[np.number]) -> FloatArray:
    """top / bottom, NaN where bottom is 0."""
    return np.divide(top, bottom, out=np.full(np.shape(bottom), np.nan), where=np.asarray(bottom) != 0)
