"""Linear probes on real TCGA features: the true minimum and early stopping against TITAN's plain loop.

    python benchmarks/probe.py                             titan-converged on one and two threads, seconds
    python benchmarks/probe.py --titan --plain             beside scikit-learn's titan and its plain loop, minutes
    python benchmarks/probe.py --width 768 --titan --plain
    python benchmarks/probe.py --width 768 --plain --values 0,11,22,28,29,30,33,44     some of the loop's 45 values

Bars: titan-converged at least 45 (width 192) and 30 (768) times cheaper than the plain loop, the same chosen
value, validation loss not above it, no prediction that differs between one and two threads; titan at least
twice as cheap as the plain loop with the same fitted model. CPU seconds, one thread unless said.

Reads the packed region features (192 wide) of 10,238 TCGA slides: width 192 is their mean per slide, 768
their mean, standard deviation, maximum and minimum.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from slimbench.runs.provenance import provenance
from slimbench.statistics.logistic import Linear, choose_penalty
from slimbench.statistics.metrics import FloatArray
from slimbench.statistics.probe import PENALTIES, Labelled, fit_probe
from slimbench.statistics.threads import one_thread

T = TypeVar("T")

DATA = Path(__file__).parents[2] / "shared" / "data" / "hipt-tcga"
FILES = {"train": ("train", "train_rest"), "val": ("val",), "test": ("test",)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=DATA, help="folder of train.npz, train_rest.npz, ...")
    parser.add_argument("--width", type=int, choices=(192, 768), default=192)
    parser.add_argument("--titan", action="store_true", help="fit scikit-learn's early-stopped path too")
    parser.add_argument("--plain", action="store_true", help="fit all 45 values with scikit-learn too")
    parser.add_argument("--values", help="numbers of the values (0 to 44) that the plain loop is cut to")
    arguments = parser.parse_args()
    chosen = (
        [int(part) for part in arguments.values.split(",")] if arguments.values else range(len(PENALTIES))
    )
    parts, classes = load(arguments.data, arguments.width)
    train, val, test = parts["train"], parts["val"], parts["test"]
    print(json.dumps(provenance()))
    print(
        f"{len(train.y)} x {train.x.shape[1]}, {classes} classes; val {len(val.y)}, test {len(test.y)}",
        flush=True,
    )

    converged, cost = timed(lambda: fit_probe("titan-converged", train, val, classes))
    ours = report("titan-converged", converged.linear, converged.facts, cost, test)
    torch.set_num_threads(2)
    two, cost = timed(lambda: choose_penalty(train.x, train.y, classes, val.x, val.y, PENALTIES))
    facts = {"penalty": two.penalty, "validation_log_loss": two.losses[two.penalty]}
    flips(ours, report("the same, two threads", two.linear, facts, cost, test))
    torch.set_num_threads(1)
    if arguments.titan:
        titan, cost = timed(lambda: fit_probe("titan", train, val, classes))
        flips(ours, report("titan, stopped", titan.linear, titan.facts, cost, test))
    if arguments.plain:
        (linear, facts), cost = timed(lambda: plain_loop(train, val, classes, PENALTIES[list(chosen)]))
        flips(ours, report("titan, plain loop", linear, facts, cost, test))
        if arguments.titan:
            same = bool(
                (linear.weight == titan.linear.weight).all() and (linear.bias == titan.linear.bias).all()
            )
            print(f"titan stopped and plain are {'the same' if same else 'NOT the same'} fitted model")


def plain_loop(
    train: Labelled, val: Labelled, classes: int, penalties: FloatArray
) -> tuple[Linear, dict[str, float]]:
    """TITAN's loop as published, from the small end; the first lowest loss wins. Prints what each value costs."""
    best: dict[str, float] = {"validation_log_loss": float("inf")}
    with one_thread(), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for penalty in map(float, penalties):
            model, cost = timed(
                lambda c=1 / penalty: LogisticRegression(C=c, max_iter=500).fit(train.x, train.y)
            )
            loss = float(log_loss(val.y, model.predict_proba(val.x), labels=np.arange(classes)))
            print(
                f"{'':22s} {cost:8.1f} CPU s  penalty {penalty:9.4g}  validation loss {loss:.5f}  "
                f"{int(model.n_iter_.max())} iterations",
                flush=True,
            )
            if loss < best["validation_log_loss"]:
                best = {"penalty": penalty, "validation_log_loss": loss}
                linear = Linear(model.coef_, model.intercept_)
    return linear, best


def load(folder: Path, width: int) -> tuple[dict[str, Labelled], int]:
    """Slides of each split, without the one class (PHC) that only train has."""
    x, codes = {}, {}
    for split, files in FILES.items():
        rows, names = [], []
        for file in files:
            with np.load(folder / f"{file}.npz") as pack:
                bags = np.split(pack["features"].astype(np.float64), pack["offsets"][1:-1])
                names += pack["oncotree"].tolist()
            rows += [summary(bag, width) for bag in bags]
        x[split], codes[split] = np.stack(rows), np.array(names)
    classes = np.array(sorted(set(codes["train"]) - {"PHC"}))
    kept = {split: np.isin(codes[split], classes) for split in FILES}
    parts = {
        split: Labelled(x[split][kept[split]], np.searchsorted(classes, codes[split][kept[split]]))
        for split in FILES
    }
    return parts, len(classes)


def summary(bag: FloatArray, width: int) -> FloatArray:
    mean: FloatArray = bag.mean(0)
    return mean if width == 192 else np.concatenate([mean, bag.std(0), bag.max(0), bag.min(0)])


def timed(work: Callable[[], T]) -> tuple[T, float]:
    start = time.process_time()
    result = work()
    return result, time.process_time() - start


def report(name: str, linear: Linear, facts: dict, cost: float, test: Labelled) -> FloatArray:
    """Print one line; returns the test probabilities."""
    p = np.exp(linear.log_probabilities(test.x))
    accuracy = (p.argmax(axis=1) == test.y).mean()
    print(
        f"{name:22s} {cost:8.1f} CPU s  chosen {facts['penalty']:9.4g}  validation loss "
        f"{facts['validation_log_loss']:.5f}  test accuracy {accuracy:.4f}",
        flush=True,
    )
    return p


def flips(ours: FloatArray, other: FloatArray) -> None:
    differing = int((ours.argmax(axis=1) != other.argmax(axis=1)).sum())
    print(
        f"{'':22s} {differing} test predictions differ, largest |dp| {np.abs(ours - other).max():.1e}",
        flush=True,
    )


if __name__ == "__main__":
    main()
