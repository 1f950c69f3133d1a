"""The embedded cohort: slides made of scikit-learn's handwritten digits, with known lesions.

The MIL-MNIST idea (arXiv 1802.04712) with a tissue outline, decoys and a report. A slide is a piece of
tissue of 128 to 223 patches; a third of them are blank, a third texture, a third digits 0 and 1.
One or two clusters of 4 to 6 adjacent patches show one digit of 2 to 9: the diagnosis. One to three
single patches show other such digits: decoys. A templated report states diagnosis, pattern,
place and background. Patch features are the hidden layer of a small classifier fitted on the digits
of the training split and frozen: the stand-in for a pathology patch encoder.

Train, validation and test slides are made of disjoint sets of handwritten digits.

    slimbench data check digits
"""

from __future__ import annotations

import hashlib
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slimbench.cohorts import digit_slides
from slimbench.cohorts.cohort import (
    CaptionSource,
    Defaults,
    InMemoryCohort,
    Patches,
    Prompts,
    Slide,
    fingerprint_of,
)
from slimbench.cohorts.digit_slides import DIAGNOSTIC, PLURALS, WIDTH, WORDS, build
from slimbench.files import cache_folder, replacing

CLASSES = tuple(sorted(WORDS[digit] for digit in DIAGNOSTIC))
PROMPTS = Prompts(
    names={WORDS[digit]: (PLURALS[digit],) for digit in DIAGNOSTIC},
    templates=(
        "a slide showing CLASSNAME",
        "a lesion of CLASSNAME",
        "diagnosis : CLASSNAME .",
        "CLASSNAME are seen in the tissue",
        "sections contain CLASSNAME",
    ),
)


def digits(seed: int = 0) -> InMemoryCohort:
    """The cohort of `seed`, from the user's cache or built in seconds; the same on every run.

    840 slides (480 train, 120 val, 240 test), eight classes with frequencies falling by 0.85, features
    [N, 48], lesion masks. A cell's seed changes training and never the cohort.
    """
    path = cache_folder() / f"digits-{seed}.npz"
    code = hashlib.sha256(Path(digit_slides.__file__).read_bytes()).hexdigest()
    arrays = _cached(path, code)
    if arrays is None:
        arrays = {"code": np.array(code), **build(seed)}
        try:
            with replacing(path) as temporary, temporary.open("wb") as file:
                np.savez(file, allow_pickle=False, **arrays)
        except OSError as error:
            warnings.warn(
                f"{path}: the cohort is not cached ({error}); it is built anew each time", stacklevel=2
            )
    return _cohort(seed, arrays)


def _cached(path: Path, code: str) -> dict[str, NDArray[Any]] | None:
    """The arrays in `path`, or None if it is missing, damaged, or written by other code than this."""
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            return {name: file[name] for name in file.files} if str(file["code"]) == code else None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _cohort(seed: int, arrays: dict[str, NDArray[Any]]) -> InMemoryCohort:
    rows = {}
    for (name, split, label, report), start, stop in zip(
        arrays["slides"].tolist(), arrays["offsets"], arrays["offsets"][1:], strict=False
    ):
        features = arrays["features"][start:stop].astype(np.float32)
        patches = Patches(
            features, arrays["coords"][start:stop].astype(np.float32), arrays["lesion"][start:stop]
        )
        rows[name] = (Slide(name, name, split, len(features), label, report), patches)
    slides = tuple(sorted((slide for slide, _ in rows.values()), key=lambda slide: (slide.split, slide.id)))
    title = "digits" if seed == 0 else f"digits-{seed}"
    captions: CaptionSource = "template-with-label"
    digests = [_digest(rows[slide.id][1]) for slide in slides]
    return InMemoryCohort(
        name=title,
        slides=slides,
        classes=CLASSES,
        dim=WIDTH,
        captions=captions,
        fingerprint=fingerprint_of(title, slides, CLASSES, WIDTH, captions, PROMPTS, digests),
        features={name: patches for name, (_, patches) in rows.items()},
        prompts=PROMPTS,
        defaults=Defaults(
            encoder="slim-tiny",
            text="tfidf",
            recipe="tiny",
            tasks=("linear-probe", "zero-shot", "retrieval", "saliency", "efficiency"),
        ),
    )


def _digest(patches: Patches) -> str:
    digest = hashlib.sha256(patches.features.tobytes())
    for array in (patches.coords, patches.lesion):
        assert array is not None
        digest.update(array.tobytes())
    return digest.hexdigest()
