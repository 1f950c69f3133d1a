"""Repacking features: one contiguous, checksummed file a slide, read many times faster than TRIDENT's chunks.

    slimbench data pack cohort.toml

TRIDENT stores every patch as a chunk of its own, and a slide of 17,182 patches as 17,182 small reads. The cohort
file names the folder of the copies (`packed = "packed"`); a copy is read only as long as it is one of
the features that its source holds now.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from slimbench.cohorts.config import read_cohort_file
from slimbench.cohorts.join import bad_id
from slimbench.cohorts.readers.features import Advance, current_copies, entries, read_finite, unwatched
from slimbench.cohorts.readers.file import FeatureFile
from slimbench.cohorts.readers.packed import write_packed
from slimbench.cohorts.table import open_file
from slimbench.errors import CohortError
from slimbench.files import replacing

_ABANDONED = 24 * 3600  # seconds after which the half-written file of a killed process is removed


@dataclass(frozen=True)
class Packed:
    """What a packing did: slides written now, slides that were packed already, bytes of all packed files."""

    written: int
    current: int
    bytes: int


def pack(
    path: Path,
    folder: Path | None = None,
    workers: int | None = None,
    advance: Advance = unwatched,
) -> Packed:
    """Pack the slides of the cohort file `path` that have no current copy yet.

    folder   where the copies go; default: what the cohort file names as `packed`
    workers  processes (default: one a core)
    advance  is called with (slides done, slides to do), first for looking into files that are new and then for
             packing

    Each copy appears whole or not at all, so an interrupted packing goes on where it stopped. Raises
    CohortError for features that cannot be read or hold NaN, after the other slides are packed.
    """
    opened = open_file(path, packed=False, advance=advance)
    if opened.cohort is None:
        raise CohortError(opened.findings[-1].message)
    target = path.parent / (folder or read_cohort_file(path).packed or _nowhere(path))
    sources = {name: file for file, name in opened.cohort.files.values()}
    return pack_files(sources, target, workers, advance)


def _nowhere(path: Path) -> Path:
    raise CohortError(f'{path}: names no folder for packed copies; add packed = "packed", or use --to')


def pack_files(
    files: Mapping[str, FeatureFile],
    folder: Path,
    workers: int | None = None,
    advance: Advance = unwatched,
) -> Packed:
    """Write `<slide>.h5` into `folder` for every slide of `files` that has no current copy there (see `pack`)."""
    for slide, file in files.items():
        if (reason := bad_id(slide)) is not None:
            raise CohortError(f"{file.path}: slide id {slide!r} {reason}; rename the slide")
        if len(file.slides()) > 1:
            raise CohortError(
                f"{file.path}: slide {slide} lies in one file with others; only folders are packed"
            )
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(".*.tmp"):
        if time.time() - leftover.stat().st_mtime > _ABANDONED:
            leftover.unlink(missing_ok=True)
    known, problems = entries(files, files, advance)
    current, _ = current_copies(folder, {slide: entry.digest for slide, entry in known.items()}, advance)
    todo = {slide: file for slide, file in files.items() if slide in known and slide not in current}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers or os.cpu_count() or 1, max(len(todo), 1)), context) as pool:
        jobs = {
            pool.submit(_pack_one, file, slide, folder / f"{slide}.h5", known[slide].kind): slide
            for slide, file in todo.items()
        }
        try:
            for done, job in enumerate(as_completed(jobs), start=1):
                try:
                    job.result()
                except CohortError as error:
                    problems[jobs[job]] = str(error)
                advance(done, len(jobs))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    if problems:
        more = f" ({len(problems):,} slides in all; the others are packed)" if len(problems) > 1 else ""
        raise CohortError(next(iter(problems.values())) + more)
    size = sum((folder / f"{slide}.h5").stat().st_size for slide in known)
    return Packed(len(todo), len(current), size)


def _pack_one(file: FeatureFile, slide: str, target: Path, kind: str) -> None:
    patches = read_finite(file, slide)
    with replacing(target) as temporary:
        write_packed(temporary, patches, kind)
