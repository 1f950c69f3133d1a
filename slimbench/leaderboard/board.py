"""The leaderboard: comparison tables from records, and what has to be said beside every row."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from slimbench.errors import UsageError
from slimbench.leaderboard.columns import Field, against, costs, identity, measured
from slimbench.leaderboard.rows import Row, mean_pool, metrics_of, random, rows, tasks_of, unpruned
from slimbench.leaderboard.table import EMPTY, Cell, Column, Table, count, words
from slimbench.runs.record import Record

if TYPE_CHECKING:
    from slimbench.leaderboard.compare import Comparison, Difference, Reader

EFFICIENCY = "efficiency"
PROBED = "balanced_accuracy"  # a task with this metric can be read against mean-pool

REFERENCES = {"unpruned": unpruned, "random": random}

MARKS = {
    "below mean-pool": "its balanced accuracy is below that of the plain mean of all patches",
    "label-supervised": "the captions it was trained on contain the labels it is probed for",
    "1 seed: no verdict": "differences of one training run are not told from chance",
    "within noise of the best": "its difference to the best row may be chance; the best was chosen on these slides",
    "no card": "slide features of another program that do not say what they are: lay a card beside them",
    "collapsed": "its embeddings hardly differ: mean pairwise cosine over 0.99, or effective rank under 3 (on few "
    "different slides under half of the largest)",
    "text only": "the frozen text tower's vector of the slide's own report, which finds itself in retrieval",
    "reports missing": "slides without a report have a vector of zeros",
    "mixed code": "its seeds ran different versions of slimbench or of a plugin; sweep --rerun stale",
}


def leaderboard(
    records: Iterable[Record], tasks: Sequence[str] = (), read: Reader | None = None
) -> tuple[Table, ...]:
    """Comparison tables of all records, one per cohort and kind of row, then the failed cells.

    tasks  show every metric of these; by default the primary one of every task
    read   reads predictions: then rows are compared with the unpruned, the random and the best one

    Rows whose encoder was trained at their own rate and rows of one model that was evaluated at other
    rates than its own stand in different tables. Raises UsageError for a task that nobody ran.
    """
    every = rows(records)
    known = tasks_of(every)
    for task in tasks:
        if task not in known:
            raise UsageError(f"no record has the task {task!r}; they have {', '.join(known) or 'none'}")
    tables = []
    for cohort, data in dict.fromkeys((row.setting.cohort, row.setting.data) for row in every):
        of_cohort = [row for row in every if row.setting.data == data]
        versions = len({row.setting.data for row in every if row.setting.cohort == cohort})
        name = f"{cohort} (data {data[:8]})" if versions > 1 else cohort
        own = [row for row in of_cohort if not row.setting.one_model]
        moved = [row for row in of_cohort if row.setting.one_model]
        tables.append(_Board(own, of_cohort, tasks, read).table(f"{name}: trained at each rate"))
        if moved:
            fixed = [r for r in own if r.setting.is_baseline or r.setting.is_unpruned or _source(r, moved)]
            title = f"{name}: one model, evaluated at other rates than it was trained at"
            tables.append(_Board([*fixed, *moved], of_cohort, tasks, read).table(title))
    failed = [record for row in every for record in row.failed]
    return (*tables, *([_failures(failed)] if failed else []))


class _Board:
    """One table in the making. shown: its rows; others: all rows of the cohort, among them the references."""

    def __init__(
        self, shown: Sequence[Row], others: Sequence[Row], tasks: Sequence[str], read: Reader | None
    ) -> None:
        self.shown = list(shown)
        self.others = others
        self.tasks = tasks
        self.known = tasks_of(shown)
        self.comparisons = self._compared(read) if read is not None else {}
        self.differences = {
            task: {
                name: comparison.against({place: of(row, others) for place, row in enumerate(shown)})
                for name, of in REFERENCES.items()
            }
            for task, comparison in self.comparisons.items()
        }

    def table(self, title: str) -> Table:
        fields = [*identity(self.shown), *self._results(), Field(Column("marks", number=False), self._said)]
        fields = [field for field in fields if any(field.of(row).text for row in self.shown)]
        return Table(
            title,
            tuple(field.column for field in fields),
            tuple(tuple(field.of(row) for field in fields) for row in self.shown),
            tuple(self._notes()),
        )

    def marks(self, row: Row) -> list[str]:
        """Keys of MARKS that hold for a row."""
        baseline = mean_pool(row, self.others)
        below = baseline is not None and not row.setting.is_baseline and _below(row, baseline)
        place = self.shown.index(row)
        text_only = "without_report" in row.facts  # alike reports are no fault of an encoder
        holds = {
            "below mean-pool": below,
            "label-supervised": row.label_supervised and not row.setting.is_baseline,
            "1 seed: no verdict": row.seeds == 1,
            "within noise of the best": any(c.within_noise.get(place) for c in self.comparisons.values()),
            "no card": "card" in row.facts and row.card is None,
            "collapsed": bool(row.facts.get("collapse", {}).get("collapsed")) and not text_only,
            "text only": text_only,
            "reports missing": any(row.facts.get("without_report", {}).values()),
            "mixed code": row.mixed,
        }
        return [mark for mark, held in holds.items() if held]

    def _compared(self, read: Reader) -> dict[str, Comparison]:
        """{task: comparison} of the asked tasks, or of the first, that left a class for each slide."""
        from slimbench.leaderboard.compare import Comparison, probed

        found = probed(self.shown)
        chosen = [task for task in found if task in self.tasks] if self.tasks else found[:1]
        return {task: Comparison(tuple(self.shown), task, self.known[task], read) for task in chosen}

    def _results(self) -> list[Field]:
        fields: list[Field] = []
        for place, (task, primary) in enumerate(self.known.items()):
            if self.tasks and task not in self.tasks:
                continue
            if task.split(":")[0] == EFFICIENCY and not self.tasks:
                fields += costs(task, self.others)
                continue
            for metric in metrics_of(self.shown, task) if self.tasks else (primary,):
                fields += measured(task, metric, rank=2 * bool(place or self.tasks))
                if metric == primary and task in self.comparisons:
                    fields += self._differences(task)
        return fields

    def _differences(self, task: str) -> list[Field]:
        """Against the unpruned and the random row, and the interval of ranks."""
        unpruned_, random_ = (self.differences[task][name] for name in REFERENCES)
        ranks = self.comparisons[task].ranks

        def of(row: Row) -> Cell:
            ends = ranks.get(self.shown.index(row))
            return EMPTY if ends is None or row.seeds < 2 else Cell(f"{ends[0]:g} to {ends[1]:g}", ends)

        return [
            *against(task, "unpruned", self.shown, unpruned_, 0),
            *against(task, "random", self.shown, random_, 3),
            Field(Column("rank", task, rank=3, ends=True), of),
        ]

    def _notes(self) -> list[str]:
        if not self.shown:
            return []
        notes = [
            "± seeds: standard deviation over seeds; 95 % slides: interval over test slides, mean over seeds"
        ]
        for task, found in self.differences.items():
            notes += _detectable(task, list(found["unpruned"].values()))
        notes += dict.fromkeys(_card_said(row.card) for row in self.shown if row.card is not None)
        notes += dict.fromkeys(said for row in self.shown if (said := _without_report_said(row)))
        used = dict.fromkeys(mark for row in self.shown for mark in self.marks(row))
        return [*notes, *(f"{mark}: {MARKS[mark]}" for mark in used)]

    def _said(self, row: Row) -> Cell:
        said = self.marks(row)
        if row.failed:
            kinds = ", ".join(sorted({r.failure.kind for r in row.failed if r.failure is not None}))
            said.insert(0, f"failed: {len(row.failed)} of {len(row.failed) + row.seeds} ({kinds})")
        return words("; ".join(said))


def _card_said(card: Mapping[str, str]) -> str:
    """`TITAN: slide features of another program, pooling attention, precision fp16`."""
    rest = [f"{key.replace('_', ' ')} {value}" for key, value in card.items() if key != "encoder"]
    return f"{card['encoder']}: " + ", ".join(["slide features of another program", *rest])


def _without_report_said(row: Row) -> str:
    """`text-only: no report in 3 train, 2 test slides`."""
    missing = [f"{n:,} {split}" for split, n in row.facts.get("without_report", {}).items() if n]
    return f"{row.encoder}: no report in {', '.join(missing)} slides" if missing else ""


def _detectable(task: str, differences: Sequence[Difference]) -> list[str]:
    """What a test set of this size can show at all."""
    if not differences:
        return []
    from slimbench.leaderboard.compare import detectable

    n, least = detectable(differences)
    what = (
        "no difference of accuracy" if least is None else f"a difference of accuracy of {least:.3f} or more"
    )
    return [
        f"{task}: {n} test slides show, with 80 % power and at the discordance seen here, {what}",
        "Δ: mean over seeds of paired differences; its interval holds slides and seeds; p is Holm-adjusted",
    ]


def _source(row: Row, moved: Sequence[Row]) -> bool:
    """Whether the model of `row` is one that was evaluated at other rates too."""
    s = row.setting
    return any(replace(o.setting, one_model=False, rate=s.rate) == s for o in moved)


def _below(row: Row, baseline: Row) -> bool:
    for task in tasks_of([row]):
        ours, theirs = row.value(task, PROBED), baseline.value(task, PROBED)
        if ours and theirs and ours.mean is not None and theirs.mean is not None and ours.mean < theirs.mean:
            return True
    return False


def _failures(failed: Sequence[Record]) -> Table:
    columns = ("cohort", "encoder", "reducer", "rate", "seed", "kind", "why", "cell")
    lines = []
    for record in failed:
        cell, failure = record.cell, record.failure
        assert failure is not None
        lines.append(
            (
                words(record.cohort_name),
                words(cell.encoder),
                words(cell.reducer),
                Cell(f"{cell.rate:g}", cell.rate),
                count(cell.seed),
                words(failure.kind),
                words(f"{failure.type}: {failure.message}"),
                words(record.key),
            )
        )
    numbers = ("rate", "seed")
    return Table(
        "Failed cells (slimbench sweep ... --rerun failed runs them again)",
        tuple(Column(name, number=name in numbers) for name in columns),
        tuple(lines),
    )
