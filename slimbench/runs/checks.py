"""What would make a cell fail on a cohort, as far as tables and file names tell, before anything is trained."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from slimbench import registry
from slimbench.errors import UsageError
from slimbench.spec import Spec

if TYPE_CHECKING:
    from slimbench.cohorts.cohort import Cohort
    from slimbench.encoder import Reads, SlideEncoder


def check_cohort(
    named: Iterable[Sequence[str]], cohort: Cohort, report: Callable[[str], None] = lambda spec: None
) -> None:
    """Ask every task whether the cohort can support it, and every encoder that reads no patches whether it knows
    the cohort's slides.

    named   (kind, spec) of the plugins of a sweep
    report  called with each spec before it is asked

    Raises SlimbenchError, one line, for the first that cannot.
    """
    for kind, spec in named:
        report(spec)
        if kind == "task":
            registry.tasks.build(spec).check(cohort)
        elif kind == "encoder" and reads_of(spec) == "nothing":
            look_at(registry.encoders.build(spec, input_dim=cohort.dim), cohort)
        elif (
            kind == "encoder"
            and reads_of(spec) == "report"
            and not any(s.report for s in cohort.split("train"))
        ):
            raise UsageError(no_reports(spec, cohort))


def reads_of(encoder: str) -> Reads:
    """SlideEncoder.reads of what an encoder's spec names, which is imported for it."""
    reads: Reads = getattr(registry.encoders.find(Spec.parse(encoder).name).load(), "reads", "patches")
    return reads


def look_at(encoder: SlideEncoder, cohort: Cohort) -> None:
    """Show an encoder that reads nothing the slides of a cohort."""
    import torch

    from slimbench.training.slides import PatchlessLoader

    load = PatchlessLoader(cohort, torch.device("cpu"), None)
    encoder.look_at([load(slide.id) for slide in cohort.slides])


def no_reports(encoder: str, cohort: Cohort) -> str:
    """What to say where an encoder needs reports and there are none to train on."""
    return (
        f"{cohort.name} has no reports in its train split and {encoder} needs some; name a reports table in the "
        "cohort file, or use --encoder mean-pool"
    )
