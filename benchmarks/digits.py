"""Every reducer on the embedded cohort at 50, 70 and 90 %: results/digits/.

    OMP_NUM_THREADS=1 python benchmarks/digits.py         1 h 44 min on two busy cores

Three seeds of every reducer, five of random (its band). The folder may be stopped and gone on with, as with any
sweep: finished cells are not run again. The tables are written from the records.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from results_folder import write

from slimbench import cli

RATES = (0.5, 0.7, 0.9)
REDUCERS = (
    "oracle",
    "reverse(oracle)",
    "cropr",
    "tome",
    "tome-local",
    "random",
    "stride",
    "grid-pool",
    "norm",
    "attn-topk",
    "evit",
    "gated-topk",
    "once(tokenlearner):after=1",
    "ats",
    "pitome",
    "dpc-knn",
)
ANALYSED = ("oracle", "cropr", "tome", "random", "grid-pool", "norm", "attn-topk")
SHOWN = (
    ("saliency", "lesion_recall"),
    ("linear-probe", "balanced_accuracy"),
    ("zero-shot", "balanced_accuracy"),
    ("retrieval", "i2t_recall_at_1"),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("slimbench-out/digits"))
    parser.add_argument("--jobs", default="2")
    asked = parser.parse_args()
    common = ["sweep", "--out", str(asked.out), "--jobs", asked.jobs, "--rates", ",".join(map(str, RATES))]
    every = [word for reducer in REDUCERS for word in ("--reducer", reducer)]
    for words in ([*every, "--seeds", "0-2"], ["--reducer", "random", "--seeds", "3-4"]):
        code = cli.run([*common, *words])
        if code:
            sys.exit(code)
    write(asked.out, "digits", SHOWN, RATES, ANALYSED)


if __name__ == "__main__":
    main()
