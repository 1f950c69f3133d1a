"""What would make a cell fail on a cohort, as far as tables and file names tell, before anything is trained."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from slimbench import registry
from slimbench.errors import UsageError
from slimbench.runs.grid import NO_REDUCER
from slimbench.schedule import schedule
from slimbench.spec import Spec

if TYPE_CHECKING:
    from slimbench.cohorts.cohort import Cohort
    from slimbench.encoder import Reads, SlideEncoder


def check_cohort(
    named: Iterable[Sequence[str]],
    cohort: Cohort,
    report: Callable[[str], None] = lambda spec: None,
    rows: Iterable[Sequence[str]] = (),
) -> None:
    """Ask every task whether the cohort can support it, every encoder that reads no patches whether it knows the
    cohort's slides, and whether reducers have a place and there are reports where a row needs them.

    named   (kind, spec) of the plugins of a sweep
    report  called with each spec before it is asked
    rows    (encoder, reducer, schedule) of the cells

    Raises SlimbenchError, one line, for the first that cannot.
    """
    rows = list(rows)
    for encoder, reducer, _ in rows:
        check_place(encoder, reducer)
    for kind, spec in named:
        report(spec)
        if kind == "task":
            registry.tasks.build(spec).check(cohort)
        elif kind == "encoder" and reads_of(spec) == "nothing":
            look_at(registry.encoders.build(spec, input_dim=cohort.dim), cohort)
        elif kind == "encoder" and reads_of(spec) == "report" and not training_reports(cohort):
            raise UsageError(no_reports(spec, cohort))
    if not training_reports(cohort):
        for encoder, reducer, name in rows:
            if reads_of(encoder) == "patches":
                report(encoder)
                is_trained(placed(encoder, reducer, name, cohort), encoder, reducer, cohort)


def check_place(encoder: str, reducer: str) -> None:
    """UsageError for a reducer in front of an encoder that reads no patches."""
    if reducer != NO_REDUCER and reads_of(encoder) != "patches":
        raise UsageError(
            f"{encoder} reads no patches; {reducer} has nothing to reduce, use none: a sweep of its own with "
            "--reducer none"
        )


def placed(encoder: str, reducer: str, schedule_name: str, cohort: Cohort) -> SlideEncoder:
    """An encoder of patches with its reducers in place."""
    built: SlideEncoder = registry.encoders.build(encoder, input_dim=cohort.dim)
    built.place_reducers(lambda dim: registry.reducers.build(reducer, dim=dim), schedule(schedule_name))
    return built


def is_trained(built: SlideEncoder, encoder: str, reducer: str, cohort: Cohort) -> bool:
    """Whether a cell trains its encoder of patches, here built with reducers in place.

    Those that come with weights are not trained, nor is, without reports, what has no parameters. Raises
    UsageError for a reducer that learns in an encoder that is not trained, and where reports are missing.
    """
    from slimbench.training.model import reducers_of

    reports = training_reports(cohort)
    trainable = any(parameter.requires_grad for parameter in built.parameters())
    if built.pretrained or not (reports or trainable):
        if any(True for _, each in reducers_of(built) for _ in each.parameters()):
            raise UsageError(
                f"{reducer} learns what to keep, and {encoder} is not trained here; "
                "use a reducer that needs no training, such as tome or random"
            )
        return False
    if not reports:
        raise UsageError(
            no_reports(encoder if reducer == NO_REDUCER else f"{encoder} with {reducer}", cohort)
        )
    return True


def training_reports(cohort: Cohort) -> list[str]:
    """The reports of the train split."""
    return [slide.report for slide in cohort.split("train") if slide.report]


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


def no_reports(row: str, cohort: Cohort) -> str:
    """What to say where an encoder, or one with a reducer, needs reports and there are none to train on."""
    return (
        f"{cohort.name} has no reports in its train split and {row} needs some; name a reports table in the "
        "cohort file, or use --encoder mean-pool with reducers that need no training, such as random"
    )
