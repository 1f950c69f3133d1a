"""What a sweep says while it runs, on standard error: bars in a terminal, plain lines anywhere else."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

import rich.progress
from rich.console import Console
from rich.text import Text

from slimbench.leaderboard.escape import one_line
from slimbench.runs.cell import Progress as CellProgress
from slimbench.runs.record import Cell, Record
from slimbench.runs.work import Job, Watcher


class Progress(Watcher):
    """One bar for the sweep, one line for each running cell."""

    def __init__(self, dry_run: bool = False) -> None:
        self.console = Console(stderr=True, highlight=False, soft_wrap=not sys.stderr.isatty())
        self.dry_run = dry_run
        self.bars = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}", markup=False),
            rich.progress.BarColumn(bar_width=24),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TimeElapsedColumn(),
            rich.progress.TextColumn("{task.fields[line]}", markup=False),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self._total: rich.progress.TaskID | None = None
        self._opening: rich.progress.TaskID | None = None
        self._cells: dict[str, rich.progress.TaskID] = {}
        self._done = self.cells = 0
        self._waiting: frozenset[str] = frozenset()

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bars.stop()

    def opening(self, done: int, total: int) -> None:
        if self._opening is None:
            self._opening = self.bars.add_task("looking into features", total=total, line="")
        self.bars.update(self._opening, completed=done, total=total, visible=done < total)

    def planned(self, jobs: Sequence[Job], done: Mapping[str, Record], corrupt: Mapping[str, str]) -> None:
        for path, why in corrupt.items():
            self._say(f"{path} cannot be read ({why}); its cell runs again")
        failed = sum(record.status == "failed" for record in done.values())
        stands = f"{len(done)} stand already" + (
            f", {failed} of them failed (--rerun failed)" if failed else ""
        )
        self._say(f"{len(jobs)} cells to run{', ' + stands if done else ''}")
        if self.dry_run:
            for job in jobs:
                self._say(named(job.cell))
        self.cells = len(jobs)
        self._total = self.bars.add_task("sweep", total=len(jobs), line="", visible=not self.dry_run)

    def started(self, job: Job) -> None:
        self._cells[job.key] = self.bars.add_task(one_line(named(job.cell)), total=None, line="starting")

    def progress(self, job: Job, progress: CellProgress) -> None:
        if job.key in self._cells:
            line = one_line(f"{progress.phase} {progress.line}")
            self.bars.update(
                self._cells[job.key], completed=progress.done, total=progress.total or None, line=line
            )

    def finished(self, job: Job, record: Record) -> None:
        self._done += 1
        if job.key in self._cells:
            self.bars.remove_task(self._cells.pop(job.key))
        if self._total is not None:
            self.bars.update(self._total, completed=self._done)
        self._say(f"[{self._done}/{self.cells}] {named(record.cell)}: {outcome(record)}")

    def elsewhere(self, owners: Mapping[str, str]) -> None:
        if frozenset(owners) != self._waiting:
            self._waiting = frozenset(owners)
            names = ", ".join(sorted(set(owners.values())))
            if owners:
                self._say(f"waiting for {len(owners)} cells that {names} is running")

    def _say(self, line: str) -> None:
        self.console.print(Text(one_line(line)))


def named(cell: Cell) -> str:
    """A cell in one line: `slim-tiny cropr 0.9 seed 0`."""
    words = [cell.encoder, cell.reducer, f"{cell.rate:g}"]
    if cell.trained_at != cell.rate:
        words.append(f"trained at {cell.trained_at:g}")
    if cell.schedule != "geometric":
        words.append(cell.schedule)
    return " ".join([*words, f"seed {cell.seed}"])


def outcome(record: Record) -> str:
    """How a cell ended, with its first result or the reason of its failure."""
    if record.failure is not None:
        return f"failed ({record.failure.kind}) {record.failure.type}: {record.failure.message}"
    firsts = [
        f"{task} {metric.name} {metric.value:.3f}"
        for task, outcome in record.tasks.items()
        for metric in outcome.metrics
        if metric.name == outcome.primary and metric.value is not None
    ]
    return ", ".join([f"{record.seconds:.0f} s", *firsts[:1]])
