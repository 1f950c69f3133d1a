"""What would spoil a number: every doubt about a cohort's data, found before anything is trained on it.

slimbench data check cohort.toml
"""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from slimbench.cohorts import EMBEDDED, open_cohort
from slimbench.cohorts.cohort import SPLITS, Cohort, Slide
from slimbench.cohorts.findings import Finding, Severity, finding
from slimbench.cohorts.readers.features import Advance, unwatched
from slimbench.cohorts.table import TableCohort, open_file
from slimbench.errors import CohortError
from slimbench.statistics.collapse import collapse

MINIMUM = 10  # slides of a class in the test split below which its accuracy moves in steps of over 10 %
_NEEDED = {"linear-probe": "labels", "zero-shot": "labels and prompts", "retrieval": "reports"}


def check(where: Cohort | str | Path, read: bool = True, advance: Advance = unwatched) -> list[Finding]:
    """Findings about a cohort, or about the one that a file describes or a name stands for; errors first.

    read     look through all features: NaN, width, duplicates, collapse (the rest reads tables and headers)
    advance  is called with (slides done, slides to do), first for looking into files that are new and then for
             reading all of them
    Raises CohortError only where nothing can be opened at all.
    """
    found: list[Finding] = []
    cohort: Cohort | None
    if isinstance(where, Cohort):
        cohort = where
    elif str(where) in EMBEDDED:
        cohort = open_cohort(str(where))
    else:
        opened = open_file(Path(where), advance=advance)
        cohort = opened.cohort
        found += opened.findings
    if cohort is not None:
        found += tables(cohort)
        found += features(cohort, advance) if read else []
    order = ("error", "warning", "info")
    return sorted(found, key=lambda each: order.index(each.severity))


def tables(cohort: Cohort) -> list[Finding]:
    """Findings about what is known before a feature is read."""
    return [
        *_joins(cohort),
        *_splits(cohort),
        *_leakage(cohort),
        *_classes(cohort),
        *_sites(cohort),
        *_kinds(cohort),
        *_reports(cohort),
        _defaults(cohort),
    ]


def features(cohort: Cohort, advance: Advance = unwatched) -> list[Finding]:
    """Findings about the features themselves; reads every slide once."""
    bad: dict[str, str] = {}
    same: dict[str, list[Slide]] = {}
    with_coords: list[str] = []
    means: list[NDArray[np.float32]] = []
    for number, slide in enumerate(cohort.slides):
        try:
            patches = cohort.patches(slide.id)
        except CohortError as error:
            bad[slide.id] = str(error)
        else:
            digest = hashlib.sha256(np.ascontiguousarray(patches.features).data).hexdigest()
            same.setdefault(digest, []).append(slide)
            means.append(patches.features.mean(axis=0))
            with_coords += [slide.id] if patches.coords is not None else []
        advance(number + 1, len(cohort.slides))
    found = [finding("error", "features", next(iter(bad.values())), list(bad))] if bad else []
    found += _duplicates([slides for slides in same.values() if len(slides) > 1])
    without = [slide.id for slide in cohort.slides if slide.id not in set(with_coords) | set(bad)]
    if with_coords and without:
        message = f"slide {without[0]} has no coordinates and others have; mixed positions make no comparison"
        found.append(finding("warning", "coordinates", message, without))
    if all(slide.patches == 1 for slide in cohort.slides) and len(means) > 2:
        found.append(_collapse(np.stack(means)))
    return found


def _collapse(embeddings: NDArray[np.float32]) -> Finding:
    found = collapse(embeddings)
    if found.collapsed:
        message = f"slide features: {found}: they hardly differ; check pooling, layer and coordinates"
        return Finding("warning", "collapse", message)
    return Finding("info", "collapse", f"slide features: {found}", len(embeddings))


def _joins(cohort: Cohort) -> list[Finding]:
    found = [
        Finding("info", "dropped", f"{count:,} slides dropped: {why}", count)
        for why, count in cohort.dropped.items()
    ]
    return found + [Finding("info", "join", str(join), join.matched) for join in cohort.joins]


def _splits(cohort: Cohort) -> list[Finding]:
    counts = Counter(slide.split for slide in cohort.slides)
    found = []
    for split, needed_by in (
        ("train", "training"),
        ("val", "choosing a probe's penalty"),
        ("test", "measuring"),
    ):
        if not counts[split]:
            severity: Severity = "warning" if split == "val" else "error"
            message = (
                f"no slide is in {split}, which {needed_by} needs; make splits with `slimbench data split`"
            )
            found.append(Finding(severity, "splits", message))
    return found


def _leakage(cohort: Cohort) -> list[Finding]:
    """Patients in two splits; opening a cohort file has looked for them already."""
    if isinstance(cohort, TableCohort):
        return []
    seen: dict[str, Slide] = {}
    leaks = {
        slide.patient: slide
        for slide in cohort.slides
        if seen.setdefault(slide.patient, slide).split != slide.split
    }
    if leaks:
        slide = next(iter(leaks.values()))
        other = seen[slide.patient]
        message = f"patient {slide.patient} is in {slide.split} (slide {slide.id}) and in {other.split} (slide {other.id})"
        return [finding("error", "leakage", message, list(leaks))]
    return []


def _classes(cohort: Cohort) -> list[Finding]:
    counts = {split: Counter(s.label for s in cohort.split(split) if s.label is not None) for split in SPLITS}
    found = []
    untrained = sorted(set(counts["test"]) - set(counts["train"]))
    if untrained:
        message = f"class {untrained[0]} has test slides and none in train: no probe can name it"
        found.append(finding("warning", "classes", message, untrained))
    small = sorted(
        (name for name, n in counts["test"].items() if n < MINIMUM), key=lambda name: counts["test"][name]
    )
    if small:
        message = (
            f"class {small[0]} has {counts['test'][small[0]]} test slides, under {MINIMUM}: balanced accuracy "
            "moves with single slides"
        )
        found.append(finding("warning", "classes", message, small))
    empty = [name for name in cohort.classes if not any(counts[split][name] for split in SPLITS)]
    if empty:
        found.append(finding("info", "classes", f"class {empty[0]} has no slide", empty))
    unlabelled = [slide.id for slide in cohort.slides if slide.label is None]
    if unlabelled and cohort.classes:
        found.append(
            finding("info", "labels", f"slide {unlabelled[0]} has no label: it is in no probe", unlabelled)
        )
    return found


def _sites(cohort: Cohort) -> list[Finding]:
    by_split = {split: {s.site for s in cohort.split(split) if s.site is not None} for split in SPLITS}
    found = []
    for split in ("val", "test"):
        shared = sorted(by_split[split] & by_split["train"])
        if shared:
            message = (
                f"{len(shared)} of the {len(by_split[split])} sites of {split} are in train too, first {shared[0]}: "
                f"{split} says little about slides of other hospitals"
            )
            found.append(Finding("warning", "sites", message, len(shared), tuple(shared[:10])))
    return found


def _kinds(cohort: Cohort) -> list[Finding]:
    entries = cohort.entries if isinstance(cohort, TableCohort) else {}
    kinds = Counter(entry.kind for entry in entries.values() if entry.kind)
    if len(kinds) < 2:
        return []
    (usual, _), *others = kinds.most_common()
    odd = [slide for slide, entry in entries.items() if entry.kind in dict(others)]
    message = (
        f"slide {odd[0]} has patches of {entries[odd[0]].kind}, most have {usual}; extract all slides with one "
        "encoder, magnification and patch size"
    )
    return [finding("error", "mixed patches", message, odd)]


def _reports(cohort: Cohort) -> list[Finding]:
    train = {slide.report for slide in cohort.split("train") if slide.report}
    with_text = [slide for slide in cohort.split("test") if slide.report]
    known = [slide.id for slide in with_text if slide.report in train]
    if not known:
        return []
    message = f"{len(known):,} of {len(with_text):,} test reports stand word for word in train, first that of {known[0]}"
    return [Finding("info", "reports", message, len(known), tuple(known[:10]))]


def _duplicates(groups: list[list[Slide]]) -> list[Finding]:
    across = [group for group in groups if len({slide.split for slide in group}) > 1]
    within = [group for group in groups if group not in across]
    found = []
    severity: Severity
    for severity, chosen, why in (
        ("error", across, "in two splits; remove one"),
        ("warning", within, "in one split; count them once"),
    ):
        if chosen:
            message = f"slides {chosen[0][0].id} and {chosen[0][1].id} have the same features, {why}"
            found.append(finding(severity, "duplicate features", message, [group[1].id for group in chosen]))
    return found


def _defaults(cohort: Cohort) -> Finding:
    """What a sweep does when its user names nothing else."""
    use = cohort.defaults
    message = f"a sweep uses encoder {use.encoder}, text {use.text}, recipe {use.recipe} and runs {', '.join(use.tasks)}"
    left = [f"{task} (needs {need})" for task, need in _NEEDED.items() if task not in use.tasks]
    return Finding("info", "defaults", message + (f"; not {', '.join(left)}" if left else ""))
