"""What of a sweep is left to do, shared with every other sweep on the same results folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, get_args

from slimbench.errors import UsageError
from slimbench.runs.cell import Progress
from slimbench.runs.claims import Claims
from slimbench.runs.provenance import source_hash
from slimbench.runs.record import Cell, Identity, Record
from slimbench.runs.store import CLAIMS, Store

Rerun = Literal["missing", "failed", "stale", "all"]


@dataclass(frozen=True)
class Job:
    """A cell that is to be run, with what its record says even when it fails.

    cohort_name, captions  Cohort.name and Cohort.captions
    before                 the record that the new one replaces, if there is one
    """

    cell: Cell
    identity: Identity
    cohort_name: str
    captions: str | None = None
    before: Record | None = None

    @cached_property
    def key(self) -> str:
        return self.identity.key(self.cell)

    @cached_property
    def training_key(self) -> str:
        return self.identity.training_key(self.cell)


class Watcher:
    """Told what happens in a sweep; this one keeps it to itself. Subclass what you want to see."""

    def opening(self, done: int, total: int) -> None:
        """The cohort's feature files are opened for the first time; not called when all of them are known."""

    def planned(self, jobs: Sequence[Job], done: Mapping[str, Record], corrupt: Mapping[str, str]) -> None:
        """Before anything runs: what will, what stands already, which files could not be read."""

    def started(self, job: Job) -> None:
        """A cell has its process."""

    def progress(self, job: Job, progress: Progress) -> None:
        """A cell has got further."""

    def finished(self, job: Job, record: Record) -> None:
        """A cell has its record, finished or failed."""

    def elsewhere(self, owners: Mapping[str, str]) -> None:
        """All that is left is being run by others: {key: who}."""


def plan(
    jobs: Sequence[Job], store: Store, rerun: Rerun
) -> tuple[list[Job], dict[str, Record], dict[str, str]]:
    """(jobs to run, records that stand, {file: why it cannot be read}).

    rerun  "missing": cells without a readable record; "failed": these and failed ones; "stale": these and
           ones made by another version of slimbench's code; "all": every cell, with its training
    """
    if rerun not in get_args(Rerun):
        raise UsageError(f"--rerun {rerun} is not one of {', '.join(get_args(Rerun))}")
    scan = store.scan(store.path(job.key) for job in jobs)
    todo, done = [], {}
    for job in jobs:
        record = scan.records.get(job.key)
        if record is None or rerun == "all" or _wanted(record, rerun):
            todo.append(replace(job, before=record))
        else:
            done[job.key] = record
    return todo, done, {str(path): why for path, why in scan.corrupt.items()}


def _wanted(record: Record, rerun: Rerun) -> bool:
    if rerun == "failed":
        return record.status == "failed"
    return rerun == "stale" and record.provenance.get("source") != source_hash()


class Work:
    """The queue of a sweep. Cells are claimed one by one; those that others finish leave the queue.

    finished  {key: record} of the cells that were in the queue and are done, here or elsewhere
    """

    def __init__(self, store: Store, jobs: Sequence[Job]) -> None:
        self.store = store
        self.claims = Claims(store.out / CLAIMS)
        self.finished: dict[str, Record] = {}
        self._queue = list(jobs)
        self._training: dict[str, str] = {}

    @property
    def left(self) -> int:
        """Cells that are in the queue: neither done nor running here."""
        return len(self._queue)

    @property
    def queued(self) -> tuple[Job, ...]:
        """The cells that are in the queue."""
        return tuple(self._queue)

    def next(self) -> Job | None:
        """A claimed cell, or None if there is none to be had now."""
        return next((job for job in self.queued if self.take(job)), None)

    def take(self, job: Job) -> bool:
        """Claim a cell of the queue; False while another process has it, or once it is done."""
        if not self._claim(job):
            self._drop_if_done(job)
            return False
        if self._drop_if_done(job):
            self._release(job)
            return False
        self._queue.remove(job)
        return True

    def collect(self) -> list[tuple[Job, Record]]:
        """The cells that others have finished since the last look; they leave the queue."""
        return [(job, self.finished[job.key]) for job in self.queued if self._drop_if_done(job)]

    def owners(self) -> dict[str, str]:
        """{key: who} of the queued cells that others are running."""
        held = {
            job.key: self.claims.holder(job.key) or self.claims.holder(job.training_key)
            for job in self._queue
        }
        return {key: owner for key, owner in held.items() if owner is not None}

    def finish(self, job: Job, record: Record) -> None:
        """Keep the record of a cell that ran here, and give the claim back."""
        self.finished[job.key] = self.store.write_record(record, job.before)
        self._release(job)

    def put_back(self, job: Job) -> None:
        """Give a cell back that did not end."""
        self._queue.insert(0, job)
        self._release(job)

    def _claim(self, job: Job) -> bool:
        """Claim the cell, and its training while the weights that others may share do not stand."""
        if not self.claims.take(job.key):
            return False
        if self.store.trained(job.training_key) is not None:
            return True
        if self.claims.take(job.training_key):
            self._training[job.key] = job.training_key
            return True
        self.claims.release(job.key)
        return False

    def _release(self, job: Job) -> None:
        self.claims.release(job.key)
        training = self._training.pop(job.key, None)
        if training is not None:
            self.claims.release(training)

    def _drop_if_done(self, job: Job) -> bool:
        record = self.store.read(job.key)
        if record is None or record == job.before:
            return False
        self._queue.remove(job)
        self.finished[job.key] = record
        return True
