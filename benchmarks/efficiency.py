"""The paper's table 5 beside ours, for every reducer: results/efficiency/.

    OMP_NUM_THREADS=1 python benchmarks/efficiency.py         about 7 minutes of one core

Cropr at the paper's five rates, every other reducer at the last of them. Each row is one `slimbench profile`
with one timed pass, in a process of its own. Rows that stand in profiles.jsonl already are not measured again:
delete the file to start anew. table5.md and table5.csv are written from it.
"""

from __future__ import annotations

import argparse
import inspect
import sys
from pathlib import Path

from slimbench import registry
from slimbench.errors import SlimbenchError
from slimbench.leaderboard.profiles import profile_table
from slimbench.leaderboard.render import FORMATS
from slimbench.measure.profile import Profile, profile_in_fresh_process
from slimbench.measure.subject import Subject
from slimbench.runs.grid import parse_rates
from slimbench.runs.provenance import provenance

OUT = Path(__file__).parent.parent / "results" / "efficiency"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--encoder", default="slim")
    parser.add_argument("--patches", type=int, default=17_182)
    parser.add_argument("--rates", default="0.5-0.9")
    parser.add_argument("--out", type=Path, default=OUT)
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    file = asked.out / "profiles.jsonl"
    done = {profile.subject: profile for profile in read(file)}
    rows = subjects(asked.encoder, asked.patches, parse_rates(asked.rates))
    for number, subject in enumerate(rows, 1):
        if subject in done:
            continue
        print(f"[{number}/{len(rows)}] {subject}", file=sys.stderr)
        try:
            done[subject] = profile_in_fresh_process(subject, provenance())
        except SlimbenchError as error:
            print(f"left out: {error}", file=sys.stderr)
            continue
        with file.open("a") as lines:
            lines.write(done[subject].model_dump_json() + "\n")
    table = profile_table(done[subject] for subject in rows if subject in done)
    for form in ("md", "csv"):
        (asked.out / f"table5.{form}").write_text(FORMATS[form]([table]))


def read(file: Path) -> list[Profile]:
    if not file.exists():
        return []
    return [Profile.model_validate_json(line) for line in file.read_text().splitlines()]


def subjects(encoder: str, patches: int, rates: tuple[float, ...]) -> list[Subject]:
    """The unpruned row, Cropr at every rate, every other reducer at the last; one that wraps another around
    cropr."""
    made = [Subject(encoder=encoder, reducer="none", rate=0.0, patches=patches)]
    for name, plugin in registry.reducers.plugins().items():
        wraps = "of" in inspect.signature(plugin.load()).parameters
        spec = f"{name}(cropr)" if wraps else name
        if name != "none":
            asked = rates if name == "cropr" else rates[-1:]
            made += [Subject(encoder=encoder, reducer=spec, rate=rate, patches=patches) for rate in asked]
    return made


if __name__ == "__main__":
    main()
