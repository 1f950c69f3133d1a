"""One run of one cell: open the cohort, train, encode, measure.

This file is the edge between the grid and the machinery; an executor calls `run_cell` in a process of
its own and writes the record it returns.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slimbench import registry
from slimbench.cohorts import open_cohort
from slimbench.cohorts.cohort import SPLITS
from slimbench.errors import UsageError
from slimbench.runs.checks import (
    check_place,
    is_trained,
    look_at,
    no_reports,
    placed,
    reads_of,
    training_reports,
)
from slimbench.runs.provenance import provenance, source_hash
from slimbench.runs.record import Cell, Identity, Kept, MetricValue, Record, TaskOutcome, Training
from slimbench.runs.store import Store
from slimbench.schedule import schedule
from slimbench.seeds import seed_of
from slimbench.training.recipe import recipe

if TYPE_CHECKING:
    from slimbench.cohorts.cohort import Cohort
    from slimbench.encoder import SlideEncoder
    from slimbench.task import Embeddings, Evidence
    from slimbench.text.tower import TextTower
    from slimbench.training.model import Aligned, TextSpace
    from slimbench.training.slides import SlideLoader


@dataclass(frozen=True)
class Progress:
    """How far a cell is: phase "train", "encode test" or a task's name; done of total; `loss 0.61`."""

    phase: str
    done: int
    total: int
    line: str = ""


Report = Callable[[Progress], None]


def identify(cell: Cell, cohort: Cohort) -> Identity:
    """Hashes of the data, the code and the weights that `cell` names; imports no torch.

    Raises TextError or CheckpointError for published weights that are not on this machine; those of a text
    tower that nothing is aligned with are not looked for.
    """
    plugins = {
        "encoder": (registry.encoders, cell.encoder),
        "reducer": (registry.reducers, cell.reducer),
        "text": (registry.text_towers, cell.text),
        **{f"task:{spec}": (registry.tasks, spec) for spec in cell.tasks},
    }
    code = {part: room.code_hash(spec) for part, (room, spec) in plugins.items()}
    if registry.text_towers.reads_weights(cell.text) and not _aligned(cell, cohort):
        del plugins["text"]
    contents = {part: room.by_content(spec) for part, (room, spec) in plugins.items()}
    changed = {part: spec for part, spec in contents.items() if spec != plugins[part][1]}
    return Identity(cohort=cohort.fingerprint, code=code, contents=changed)


def _aligned(cell: Cell, cohort: Cohort) -> bool:
    """Whether there are reports and an encoder that comes without weights."""
    return bool(training_reports(cohort)) and not registry.encoders.reads_weights(cell.encoder)


def run_cell(cell: Cell, out: Path, report: Report) -> Record:
    """Train (or reuse the trained weights of) the cell's encoder, run its tasks, write predictions.

    Returns the record of a finished cell; whatever goes wrong is raised, for the executor to record.
    """
    import torch

    from slimbench.encoder import Plan
    from slimbench.runs.evidence import CellEvidence
    from slimbench.training.model import Aligned
    from slimbench.training.slides import PatchlessLoader, SlideLoader

    started, clock = datetime.now(UTC), time.monotonic()
    store = Store(out)
    cohort = open_cohort(cell.cohort)
    identity = identify(cell, cohort)
    key = identity.key(cell)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoder, model, tower = build(cell, cohort, device)
    patches = encoder.reads == "patches"
    load = SlideLoader(cohort, device) if patches else PatchlessLoader(cohort, device, tower)
    plan = Plan(schedule(cell.schedule), cell.rate, cell.seed)
    training = None
    if isinstance(model, Aligned) and tower is not None:
        training = _train_or_load(cell, identity.training_key(cell), model, tower, load, store, report)
    evidence = CellEvidence(
        cohort,
        encoder,
        model,
        tower,
        load,
        plan,
        cell.precision,
        lambda phase, done, total: report(Progress(phase, done, total)),
    )
    outcomes = {spec: _run_task(spec, evidence, store, key, report) for spec in cell.tasks}
    test = evidence.embeddings("test")
    if test.left is not None:
        ids = [slide.id for slide in test.slides]
        store.write_kept_sets(key, dict(zip(ids, test.left, strict=True)))
    return Record(
        key=key,
        cell=cell,
        identity=identity,
        cohort_name=cohort.name,
        captions=cohort.captions,
        status="ok",
        training=training,
        kept=_kept(test, encoder.kept_entry) if patches else None,
        tasks=outcomes,
        provenance=provenance()
        | {
            "device": str(device),
            "dropped": dict(cohort.dropped),
            "joins": [asdict(join) for join in cohort.joins],
            "encoder": dict(encoder.facts) | ({} if patches else _embedded(evidence)),
        },
        started=started,
        ended=datetime.now(UTC),
        seconds=time.monotonic() - clock,
    )


def build(
    cell: Cell, cohort: Cohort, device: Any
) -> tuple[SlideEncoder, Aligned | TextSpace | None, TextTower | None]:
    """The cell's encoder with its reducers in place, seeded by the cell; and, unless it comes with
    weights or the cohort has no reports, the model that aligns it with the text tower."""
    import torch

    from slimbench.training.model import Aligned, TextSpace

    reports = training_reports(cohort)
    reads = reads_of(cell.encoder)
    check_place(cell.encoder, cell.reducer)
    if reads == "report":
        if not reports:
            raise UsageError(no_reports(cell.encoder, cohort))
        tower: TextTower = registry.text_towers.build(cell.text, training_reports=reports)
        return registry.encoders.build(cell.encoder, input_dim=tower.dim).to(device), TextSpace(), tower
    # Only the cell's own seed enters: rows that differ in the reducer start from the same encoder.
    torch.manual_seed(seed_of("init", cell.seed))
    if reads == "nothing":
        encoder: SlideEncoder = registry.encoders.build(cell.encoder, input_dim=cohort.dim)
        look_at(encoder, cohort)
        return encoder.to(device), None, None
    encoder = placed(cell.encoder, cell.reducer, cell.schedule, cohort)
    if not is_trained(encoder, cell.encoder, cell.reducer, cohort):
        return encoder.to(device), None, None
    tower = registry.text_towers.build(cell.text, training_reports=reports)
    return encoder.to(device), Aligned(encoder, tower.dim, recipe(cell.recipe)).to(device), tower


def _train_or_load(
    cell: Cell,
    key: str,
    model: Aligned,
    tower: TextTower,
    load: SlideLoader,
    store: Store,
    report: Report,
) -> Training:
    import torch
    from safetensors.torch import load_model, save

    from slimbench.encoder import Plan
    from slimbench.training.fit import fit

    before = store.trained(key)
    if before is not None:
        load_model(model, store.weights(key))
        model.eval()
        return before.model_copy(update={"reused": True})
    chosen = recipe(cell.recipe)
    began = time.monotonic()
    slides = [slide for slide in load.cohort.split("train") if slide.report]
    reports = sorted({slide.report for slide in slides if slide.report})
    report(Progress("embed reports", 0, len(reports)))
    rows = torch.from_numpy(tower.embed(reports))
    history = fit(
        model,
        slides,
        dict(zip(reports, rows, strict=True)),
        load,
        chosen,
        Plan(schedule(cell.schedule), cell.trained_at, seed_of("train", cell.seed)),
        cell.precision,
        lambda done, total, loss: report(Progress("train", done, total, f"loss {loss:.3f}")),
    )
    training = Training(
        epochs=chosen.epochs,
        steps=history.steps,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        first_loss=history.losses[0],
        last_loss=history.losses[-1],
        seconds=time.monotonic() - began,
        source=source_hash(),
    )
    store.write_training(key, save(model.state_dict()), training)
    return training


def _run_task(spec: str, evidence: Evidence, store: Store, key: str, report: Report) -> TaskOutcome:
    task = registry.tasks.build(spec)
    report(Progress(spec, 0, 1))
    began = time.monotonic()
    if task.needs_alignment and evidence.logit_scale is None:
        return TaskOutcome(primary=task.primary, skipped="the encoder is not aligned with text")
    if task.needs_patches and evidence.encoder.reads != "patches":
        return TaskOutcome(primary=task.primary, skipped="the encoder reads no patches")
    result = task.run(evidence)
    path = None
    if result.predictions is not None:
        path = store.write_predictions(key, spec, result.predictions)
    return TaskOutcome(
        metrics=tuple(MetricValue(**asdict(metric)) for metric in result.metrics),
        primary=task.primary,
        facts=dict(result.facts),
        predictions=path,
        seconds=time.monotonic() - began,
    )


def _embedded(evidence: Evidence) -> dict[str, Any]:
    """What has to be said of embeddings that came ready: whether they differ, and how many are missing."""
    import numpy as np

    from slimbench.statistics.collapse import collapse

    found = [evidence.embeddings(split) for split in SPLITS]
    rows = np.concatenate([part.embedding for part in found])
    facts: dict[str, Any] = {"collapse": asdict(collapse(rows))} if len(rows) > 1 else {}
    if evidence.encoder.reads == "report":
        facts["without_report"] = {
            split: sum(not slide.report for slide in part.slides)
            for split, part in zip(SPLITS, found, strict=True)
        }
    return facts


def _kept(embeddings: Embeddings, entry: int) -> Kept:
    """entry: SlideEncoder.kept_entry."""
    counts = embeddings.counts
    blocks = list(zip(*counts, strict=True))
    kept = [row[entry] for row in counts]
    shares = [tokens / slide.patches for tokens, slide in zip(kept, embeddings.slides, strict=True)]
    return Kept(
        tokens_per_block=tuple(sum(block) / len(block) for block in blocks),
        share=sum(shares) / len(shares),
        single_token=sum(tokens == 1 for tokens in kept) / len(kept),
        n=len(counts),
    )
