"""The features of a cohort: every slide's file in the folders and files that a cohort file names."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from slimbench.cohorts.cohort import Patches
from slimbench.cohorts.findings import nearest
from slimbench.cohorts.readers import FORMATS
from slimbench.cohorts.readers.file import FeatureFile
from slimbench.errors import CohortError
from slimbench.files import cache_folder, replacing

Advance = Callable[[int, int], None]


def unwatched(done: int, total: int) -> None:
    """An Advance for whom nobody waits."""


@dataclass(frozen=True)
class Entry:
    """What is remembered of a slide's features, so that opening a cohort again reads no features.

    kind, digest, current  as in `readers.file.Head`
    """

    patches: int
    dim: int
    kind: str
    digest: str
    current: bool = True


def find_files(paths: Sequence[Path], format: str | None = None) -> Mapping[str, FeatureFile]:
    """{slide id: its feature file} over folders and files.

    format  one of FORMATS; None: each folder's first file, and each named file, is looked into
    Raises CohortError for a missing path, a folder without feature files, a slide in two of them.
    """
    found: dict[str, FeatureFile] = {}
    for path in paths:
        files = _feature_files(path, format)
        kind = _format_of(files[0], format)
        for file in map(kind, files):
            for slide in file.slides():
                if slide in found:
                    raise CohortError(
                        f"slide {slide} has features in {found[slide].path} and in {file.path}; keep one"
                    )
                found[slide] = file
    return found


def read_finite(file: FeatureFile, slide_id: str, dim: int | None = None) -> Patches:
    """Patches of one slide, checked: CohortError for NaN or infinity (naming the row) or another width."""
    patches = file.read(slide_id)
    features = patches.features
    if dim is not None and len(features) and features.shape[1] != dim:
        raise CohortError(
            f"{file.path}: slide {slide_id} has width {features.shape[1]}, the cohort has {dim}"
        )
    with np.errstate(over="ignore", invalid="ignore"):
        total = features.sum()  # a cheap screen: the rows are looked through only if it is not finite
    if not np.isfinite(total):
        rows = np.flatnonzero(~np.isfinite(features).all(axis=1))
        if len(rows):
            raise CohortError(
                f"{file.path}: slide {slide_id} has NaN or infinite features in row {rows[0]} "
                f"({len(rows)} of {len(features)} rows); extract it again, in float32 if this is an overflow"
            )
    if patches.coords is not None and not np.isfinite(patches.coords).all():
        raise CohortError(f"{file.path}: slide {slide_id} has NaN or infinite coordinates; extract it again")
    return patches


def entries(
    files: Mapping[str, FeatureFile], slides: Iterable[str], advance: Advance = unwatched
) -> tuple[dict[str, Entry], dict[str, str]]:
    """Entries of the slides, and {slide: message} for those whose file cannot be read.

    advance  is called with (files looked into, files to look into): those that nobody has looked into before

    They are kept in the user's cache, one file for each folder, and an entry holds as long as size,
    times and inode of its feature file do. What an interrupted look has found is kept too.
    """
    known: dict[str, Entry] = {}
    problems: dict[str, str] = {}
    places: dict[Path, Path] = {}
    notes: dict[Path, dict[str, dict]] = {}
    unread: list[tuple[str, Path, str, list[int]]] = []
    for slide in slides:
        file = files[slide]
        folder = file.path.parent
        if folder not in places:
            places[folder] = _place(folder)
            notes[places[folder]] = _remembered(places[folder])
        place = places[folder]
        try:
            stat = file.path.stat()
        except OSError as error:
            problems[slide] = f"{file.path}: {error.strerror}"
            continue
        key = f"{file.format} {file.path.name} {slide}"
        state = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
        note = notes[place].get(key, {})
        if note.get("state") == state:
            known[slide] = Entry(**note["entry"])
        else:
            unread.append((slide, place, key, state))
    try:
        for done, (slide, place, key, state) in enumerate(unread, start=1):
            try:
                head = files[slide].head(slide)
                known[slide] = Entry(head.patches, head.dim, head.kind, head.digest, head.current)
                notes[place][key] = {"state": state, "entry": asdict(known[slide])}
            except OSError as error:
                problems[slide] = f"{files[slide].path}: {error.strerror}"
            except CohortError as error:
                problems[slide] = str(error)
            advance(done, len(unread))
    finally:
        for place in {place for _, place, _, _ in unread}:
            _remember(place, notes[place])
    return known, problems


def current_copies(
    folder: Path, digests: Mapping[str, str], advance: Advance = unwatched
) -> tuple[dict[str, FeatureFile], list[str]]:
    """The packed copies in `folder` of what `digests` {slide: digest of its features now} says.

    And the slides whose copy holds something else, has another format number or cannot be read.
    advance  as of `entries`
    """
    if not any(folder.glob("*.h5")):
        return {}, []
    files = {slide: file for slide, file in find_files([folder], "packed").items() if slide in digests}
    known, _ = entries(files, files, advance)
    current = {
        slide: files[slide]
        for slide, entry in known.items()
        if entry.current and entry.digest == digests[slide]
    }
    return current, [slide for slide in files if slide not in current]


def _feature_files(path: Path, format: str | None) -> list[Path]:
    """The feature files at `path`, sorted, all with suffixes of one format; not empty."""
    suffixes = {suffix for name in ([format] if format else FORMATS) for suffix in _class_of(name).suffixes}
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise CohortError(f"no features at {path}: no such file or folder")
    visible = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    files = [entry for entry in visible if entry.suffix in suffixes and entry.is_file()]
    if not files:
        inside = [entry.name for entry in visible if entry.is_dir()]
        hint = f"it has the folders {', '.join(inside[:5])}" if inside else "name the folder that holds them"
        raise CohortError(f"{path}: no feature files ({', '.join(sorted(suffixes))}); {hint}")
    if format is None and len(kinds := {file.suffix for file in files}) > 1:
        raise CohortError(f'{path}: holds {" and ".join(sorted(kinds))} files; say which with format = "..."')
    return files


def _format_of(path: Path, format: str | None) -> type[FeatureFile]:
    if format is not None:
        return _class_of(format)
    for kind in map(_class_of, FORMATS):
        if path.suffix in kind.suffixes and kind.detect(path):
            return kind
    raise CohortError(f"{path}: not a feature file of a known format ({', '.join(FORMATS)})")


def _class_of(format: str) -> type[FeatureFile]:
    if format not in FORMATS:
        raise CohortError(f"no feature format {format!r}; {nearest(format, FORMATS)}")
    module, _, name = FORMATS[format].partition(":")
    kind: type[FeatureFile] = getattr(importlib.import_module(module), name)
    return kind


def _code() -> str:
    """Hash of the readers' own code: what another version remembered is not believed."""
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()


def _place(folder: Path) -> Path:
    """Where the entries of a folder's files are kept."""
    return (
        cache_folder()
        / "features"
        / f"{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]}.json"
    )


def _remembered(place: Path) -> dict[str, dict]:
    try:
        content = json.loads(place.read_text())
        return content["files"] if content["code"] == _code() else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _remember(place: Path, files: dict[str, dict]) -> None:
    try:
        with replacing(place) as temporary:
            temporary.write_text(json.dumps({"code": _code(), "files": files}))
    except OSError:
        return  # a cache that cannot be written costs time and nothing else
