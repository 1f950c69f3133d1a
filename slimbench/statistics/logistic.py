"""Multinomial logistic regression at its true minimum, along a path of penalties.

Early-stopped fits are a number per BLAS, thread count and library version; a minimum is not. Newton
steps by preconditioned conjugate gradients in the data's principal axes find it 30 to 60 times cheaper
than lbfgs crawls towards it.

    f(W) = mean cross-entropy + penalty / (2 n) * |W without its intercepts|^2

is scikit-learn's LogisticRegression(C = 1 / penalty) divided by C n.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax

FloatArray = NDArray[np.float64]

SCAN = 1e-4  # relative distance to the minimum that suffices to compare penalties
POLISH = 1e-9  # and the one for the penalty that is kept
PATIENCE = 3  # penalties in a row above the best validation loss that end a path
LEARNED = 0.95  # once that is below this share of the loss of the class frequencies: before anything is
# learned, the loss may rise and fall
MARGIN = 0.005  # above the best validation loss: fits that are polished before one is chosen
_MAX_NEWTON, _MAX_CG, _MAX_HALVINGS = 100, 500, 40


@dataclass(frozen=True)
class Linear:
    """A fitted linear classifier. weight [K, D], bias [K], float64."""

    weight: FloatArray
    bias: FloatArray

    def log_probabilities(self, x: NDArray[np.floating]) -> FloatArray:
        """[n, K] float64 of x [n, D]."""
        logits = x.astype(np.float64) @ self.weight.T + self.bias
        shifted = logits - logits.max(axis=1, keepdims=True)
        result: FloatArray = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        return result


class LogisticPath:
    """Fits of one training set under several penalties, in its principal axes.

    The L2 penalty is invariant to rotation and the free intercept absorbs the centring, so the axes with
    variance hold the whole problem: r <= min(D, n - 1) of them.

    x [n, D] finite; y [n] in [0, classes), every class present, at least two of them.
    """

    def __init__(self, x: NDArray[np.floating], y: NDArray[np.int64], classes: int) -> None:
        x64 = torch.from_numpy(np.ascontiguousarray(x, dtype=np.float64))
        n, dim = x64.shape
        self.mean = x64.mean(0)
        centred = x64 - self.mean
        if n > dim:
            variance, axes = torch.linalg.eigh(centred.T @ centred / n)
            kept = variance > 1e-13 * variance[-1]
            self.axes = axes[:, kept]
        else:
            variance, left = torch.linalg.eigh(centred @ centred.T / n)
            kept = variance > 1e-13 * variance[-1]
            self.axes = centred.T @ left[:, kept] / (n * variance[kept]).sqrt()
        self.y = torch.from_numpy(y)
        self.onehot = torch.nn.functional.one_hot(self.y, classes).double().T.contiguous()
        self.z = torch.cat([centred @ self.axes, torch.ones(n, 1, dtype=torch.float64)], 1)
        self.z32, self.square32 = self.z.float(), self.z.square().float()
        self.onehot32 = self.onehot.float()
        # scikit-learn's binary problem has one weight vector where the softmax has two of half the length
        self.penalty_factor = 2.0 if classes == 2 else 1.0

    def start(self) -> Tensor:
        """[K, r + 1]: no weights, intercepts at the log class frequencies."""
        w = torch.zeros(len(self.onehot), self.z.shape[1], dtype=torch.float64)
        w[:, -1] = self.onehot.mean(1).log()
        return w

    def fit(
        self, penalty: float, w: Tensor, tol: float, previous: Tensor | None = None
    ) -> tuple[Tensor, int]:
        """Minimum for `penalty` and the Newton steps it took, from w or from the secant through `previous`.

        `tol` bounds half the Newton decrement, an estimate of f - min f, relative to f where that is below
        1. Values and gradients are float32 down to SCAN and float64 below; products with the Hessian are
        float32 always.
        """
        penalty *= self.penalty_factor
        dtype = torch.float32 if tol >= SCAN else torch.float64
        eta = 0.3 if tol >= SCAN else 0.1
        w = w.to(dtype)
        value, gradient, p = self._evaluate(w, penalty)
        if previous is not None:
            secant = 2 * w - previous.to(dtype)
            there = self._evaluate(secant, penalty)
            if there[0] < value:
                w, (value, gradient, p) = secant, there
        for step_count in range(_MAX_NEWTON):
            step = self._newton_step(gradient, p.float(), penalty, eta).to(dtype)
            slope = float((gradient * step).sum())
            if -slope < 2 * tol * min(1.0, value):
                return w.double(), step_count
            length = 1.0
            for _ in range(_MAX_HALVINGS):
                there = self._evaluate(w + length * step, penalty)
                if there[0] <= value + 1e-4 * length * slope:
                    break
                length /= 2
            else:
                return w.double(), step_count  # rounding leaves no descent: as low as this precision goes
            w, (value, gradient, p) = w + length * step, there
        return w.double(), _MAX_NEWTON

    def linear(self, w: Tensor) -> Linear:
        """The classifier of w in the coordinates of x."""
        weight = w[:, :-1] @ self.axes.T
        return Linear(weight.numpy(), (w[:, -1] - weight @ self.mean).numpy())

    def rotate(self, x: NDArray[np.floating]) -> Tensor:
        """[m, r + 1] float64: other rows of x in the coordinates of w."""
        z = (torch.from_numpy(np.asarray(x, dtype=np.float64)) - self.mean) @ self.axes
        return torch.cat([z, torch.ones(len(z), 1, dtype=torch.float64)], 1)

    def _evaluate(self, w: Tensor, penalty: float) -> tuple[float, Tensor, Tensor]:
        """Value, gradient [K, r + 1] and class probabilities [K, n] in w's precision."""
        single = w.dtype == torch.float32
        z, onehot = (self.z32, self.onehot32) if single else (self.z, self.onehot)
        n = len(z)
        log_p = log_softmax(w @ z.T, dim=0)
        p = log_p.exp()
        free = w.clone()
        free[:, -1] = 0
        value = -(log_p * onehot).sum().double() / n + penalty / (2 * n) * free.double().square().sum()
        gradient = (p - onehot) @ z / n + penalty / n * free
        return float(value), gradient, p

    def _newton_step(self, gradient: Tensor, p: Tensor, penalty: float, eta: float) -> Tensor:
        """Approximate solution of H s = -gradient by conjugate gradients with a diagonal preconditioner."""
        n = p.shape[1]
        ridge = torch.full_like(gradient, penalty / n, dtype=torch.float32)
        ridge[:, -1] = 0
        inverse = 1 / ((p * (1 - p)) @ self.square32 / n + ridge + 1e-12)

        def hessian(v: Tensor) -> Tensor:
            pa = p * (v @ self.z32.T)
            return pa.sub_(p * pa.sum(0)) @ self.z32 / n + ridge * v

        residual = -gradient.float()
        step = torch.zeros_like(residual)
        scaled = inverse * residual
        direction = scaled
        energy = first = float((residual * scaled).sum())
        for _ in range(_MAX_CG):
            if energy <= eta**2 * first:
                break
            image = hessian(direction)
            curvature = float((direction * image).sum())
            if curvature <= 0:  # rounding, where the classes are all but decided
                break
            length = energy / curvature
            step += length * direction
            residual -= length * image
            scaled = inverse * residual
            before, energy = energy, float((residual * scaled).sum())
            direction = scaled + energy / before * direction
        return step


@dataclass(frozen=True)
class Chosen:
    """The penalty with the lowest validation loss.

    losses  {penalty: validation log-loss} of every penalty that was fitted
    steps   Newton steps in all
    """

    linear: Linear
    penalty: float
    losses: dict[float, float]
    steps: int


def choose_penalty(
    x: NDArray[np.floating],
    y: NDArray[np.int64],
    classes: int,
    x_val: NDArray[np.floating],
    y_val: NDArray[np.int64],
    penalties: FloatArray,
) -> Chosen:
    """Fit a path from the largest penalty down until the validation loss keeps rising, polish every fit
    within MARGIN of the best and keep the best of those; ties go to the smaller penalty."""
    path = LogisticPath(x, y, classes)
    z_val, target = path.rotate(x_val), torch.from_numpy(y_val)

    def loss(w: Tensor) -> float:
        return float(cross_entropy(z_val @ w.T, target))

    w, previous = path.start(), None
    learned = LEARNED * loss(w)
    fits: dict[float, Tensor] = {}
    losses: dict[float, float] = {}
    total = rises = 0
    for penalty in sorted(map(float, penalties), reverse=True):
        found, steps = path.fit(penalty, w, SCAN, previous)
        previous, w = (w if fits else None), found
        fits[penalty], total = found, total + steps
        losses[penalty] = loss(found)
        rises = rises + 1 if losses[penalty] > min(losses.values()) else 0
        if rises >= PATIENCE and min(losses.values()) < learned:
            break
    bound = min(losses.values()) + MARGIN
    polished = {}
    for penalty in [penalty for penalty in fits if losses[penalty] <= bound]:
        polished[penalty], steps = path.fit(penalty, fits[penalty], POLISH)
        losses[penalty], total = loss(polished[penalty]), total + steps
    best = min(polished, key=lambda penalty: (losses[penalty], penalty))
    return Chosen(path.linear(polished[best]), best, losses, total)
