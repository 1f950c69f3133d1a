"""Token reducers on 10,238 real TCGA slides: results/tcga-ot-hipt/.

    OMP_NUM_THREADS=1 python benchmarks/tcga_ot_hipt.py DATA         42 minutes on two cores

DATA holds `hipt-tcga/` (HIPT's region features and condensed reports, packed as .npz and .csv) and `TITAN/`
(its TCGA-OT tables). Neither is part of slimbench; their licences forbid passing them on. Stopped, it goes on where
it was. The tables are written from the records; features and texts are not in them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from results_folder import write

from slimbench import cli

RATES = (0.5, 0.9)
SCHEDULES = ("--schedule", "geometric", "--schedule", "input")
SWEEPS = (
    ("--reducer", "cropr", "--reducer", "tome", "--reducer", "random", "--seeds", "0-2", *SCHEDULES),
    ("--reducer", "random", "--seeds", "3-4", *SCHEDULES, "--no-baselines"),
    (
        "--encoder", "mean-pool", "--reducer", "random", "--seeds", "0-4", "--schedule", "input", "--no-baselines",
    ),
    ("--encoder", "text-only", "--reducer", "none", "--seeds", "0", "--no-baselines"),
)  # fmt: skip
SHOWN = (
    ("linear-probe", "balanced_accuracy"),
    ("knn", "balanced_accuracy"),
    ("retrieval", "i2t_recall_at_10"),
)
COHORT = """\
name = "tcga-ot-hipt"
features = [{features}]
missing = "drop"

[slides]
train = "{titan}/tcga-ot_train.csv"
val = "{titan}/tcga-ot_val.csv"
test = "{titan}/tcga-ot_test.csv"
label = "OncoTreeCode"
site = "source_site"

[reports]
table = "{hipt}/reports.csv"
slide = "slide_id"
source = "condensed"

[defaults]
encoder = "slim:width=96,heads=4,mlp=192,segments=32+256,ratios=1+2"
text = "tfidf"
recipe = "tiny:epochs=4,batch=64,lr=1e-3"
tasks = ["linear-probe", "retrieval", "knn", "efficiency"]
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="the folder that holds hipt-tcga/ and TITAN/")
    parser.add_argument("--out", type=Path, default=Path("slimbench-out/tcga-ot-hipt"))
    parser.add_argument("--jobs", default="2")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    hipt, titan = (asked.data.resolve() / part for part in ("hipt-tcga", "TITAN"))
    names = ("train", "train_rest", "val", "test")
    features = ", ".join(f'"{hipt / name}.npz"' for name in names)
    cohort = asked.out / "cohort.toml"
    cohort.write_text(COHORT.format(features=features, hipt=hipt, titan=titan))
    common = ("sweep", "--cohort", str(cohort), "--out", str(asked.out), "--jobs", asked.jobs)
    for words in SWEEPS:
        code = cli.run([*common, "--rates", ",".join(map(str, RATES)), *words])
        if code:
            sys.exit(code)
    write(asked.out, "tcga-ot-hipt", SHOWN, RATES, ("cropr", "tome", "random"))


if __name__ == "__main__":
    main()
