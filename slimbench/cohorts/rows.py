"""What the tables of a cohort file say of each slide, before its features are looked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from slimbench.cohorts.cohort import SPLITS
from slimbench.cohorts.config import CohortFile
from slimbench.cohorts.findings import Finding, finding
from slimbench.cohorts.join import Join, bad_id, join, tcga_patient
from slimbench.cohorts.prompts import read_label_dict
from slimbench.cohorts.tables import Table, read_table
from slimbench.errors import CohortError

NO_SPLIT = (None, "-1")  # Patho-Bench writes -1 for slides outside a fold


@dataclass(frozen=True)
class Row:
    """One slide of the tables; `where` is the table and row that names it."""

    id: str
    patient: str
    where: str
    split: str | None
    label: str | None
    site: str | None
    report: str | None = None


@dataclass
class Rows:
    """All slides of the tables, the class order, how the joins went, and what is wrong."""

    rows: list[Row]
    classes: tuple[str, ...] = ()
    joins: list[Join] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)


def read_rows(file: CohortFile, resolve: Callable[[Path], Path], splits: bool = True) -> Rows:
    """The slides that the tables of a cohort file name, with everything known of them.

    resolve  makes a path of the file absolute
    splits   False: leave the splits unread, because they are about to be made
    Raises CohortError for what stops the reading (no such file, no such column); what is wrong in the
    content is collected in `findings`.
    """
    out = Rows([])
    for split, path in file.slides.tables.items():
        out.rows += _table_rows(file, split, read_table(resolve(path)), splits and file.splits is None)
    _check_ids(out)
    if file.labels is not None:
        section = file.labels
        out.rows = _joined(
            out, "labels", resolve(section.table), section.slide, section.patient, section.label
        )
    if splits and file.splits is not None:
        other = file.splits
        if not resolve(other.table).is_file():
            raise CohortError(
                f"no table of splits {resolve(other.table)}; `slimbench data split` makes one from this cohort file"
            )
        out.rows = _joined(out, "splits", resolve(other.table), other.slide, other.patient, other.split)
    if file.reports is not None:
        texts = file.reports
        out.rows = _joined(out, "reports", resolve(texts.table), texts.slide, texts.patient, texts.text)
    if splits:
        _keep_splits(out)
        _check_leakage(out)
    _order_classes(out, file, resolve)
    return out


def _table_rows(file: CohortFile, split: str | None, table: Table, in_column: bool) -> list[Row]:
    section = file.slides
    ids = table.column(section.slide)
    patients = _patients(table, section.patient, ids)
    labels = table.column(section.label) if section.label else [None] * len(ids)
    sites = table.column(section.site) if section.site else [None] * len(ids)
    splits = table.column(section.split) if in_column and split is None else [split] * len(ids)
    rows = []
    for number, (name, patient) in enumerate(zip(ids, patients, strict=True)):
        where = table.row_name(number)
        if not name or not patient:
            raise CohortError(
                f"{where}: no {'patient' if name else 'slide'} id; fill the cell or remove the row"
            )
        rows.append(Row(name, patient, where, splits[number], labels[number], sites[number]))
    return rows


def _patients(table: Table, column: str | None, ids: list[str | None]) -> list[str | None]:
    """Patient of each row: from the named column, from `case_id`, or from TCGA barcodes."""
    if column is not None or "case_id" in table.columns:
        return table.column(column or "case_id")
    barcodes = [tcga_patient(name) if name else None for name in ids]
    if None in barcodes:
        raise CohortError(
            f'{table.name}: no column `case_id`; name the patients\' column in [slides] as patient = "..." '
            "(the column of slide ids if every slide is another patient)"
        )
    return barcodes


def _check_ids(out: Rows) -> None:
    """Ids that cannot be ids, and ids that stand in two rows; of those the first stays."""
    bad = [(row, reason) for row in out.rows if (reason := bad_id(row.id)) is not None]
    if bad:
        row, reason = bad[0]
        message = f"{row.where}: slide id {row.id!r} {reason}; rename the slide"
        out.findings.append(finding("error", "ids", message, [row.id for row, _ in bad]))
    first: dict[str, Row] = {}
    twice = []
    for row in out.rows:
        if row.id in first:
            twice.append(row)
        first.setdefault(row.id, row)
    if twice:
        row = twice[0]
        message = f"{row.where}: slide {row.id} stands already in {first[row.id].where}; keep one of them"
        out.findings.append(finding("error", "duplicate ids", message, [row.id for row in twice]))
    out.rows = list(first.values())


def _joined(
    out: Rows, what: str, path: Path, slide: str | None, patient: str | None, value: str
) -> list[Row]:
    """The rows with `what` ("labels", "splits", "reports") from another table, by slide or patient id."""
    table = read_table(path)
    table.require(value)
    by_patient = patient is not None or (slide is None and "slide_id" not in table.columns)
    key = (patient or "case_id") if by_patient else (slide or "slide_id")
    values: dict[str, str | None] = {}
    for number, (name, cell) in enumerate(zip(table.column(key), table.column(value), strict=True)):
        if name is None:
            continue
        if name in values and values[name] != cell:
            raise CohortError(
                f"{table.row_name(number)}: {key} {name} has another {value} than in an earlier row"
            )
        values[name] = cell
    keys = [row.patient if by_patient else row.id for row in out.rows]
    found, went = join(keys, values, what, table.name)
    if not found:
        raise CohortError(
            f"{table.name}: none of its {len(values):,} {key} is in the slides table (first there: "
            f"{next(iter(values), 'none')}, first here: {keys[0] if keys else 'none'})"
        )
    cells = [values[found[key]] if key in found else None for key in keys]
    by_slide = [row.id for row, cell in zip(out.rows, cells, strict=True) if cell is None or not cell.strip()]
    out.joins.append(
        replace(
            went,
            matched=len(cells) - len(by_slide),
            total=len(cells),
            first_without=by_slide[0] if by_slide else None,
        )
    )
    texts = [cell if cell and cell.strip() else None for cell in cells]
    if what == "labels":
        return [replace(row, label=text) for row, text in zip(out.rows, texts, strict=True)]
    if what == "splits":
        return [replace(row, split=text) for row, text in zip(out.rows, texts, strict=True)]
    return [replace(row, report=text) for row, text in zip(out.rows, texts, strict=True)]


def _keep_splits(out: Rows) -> None:
    """Leave out the slides without a split; report other words than train, val and test."""
    odd = [row for row in out.rows if row.split not in SPLITS and row.split not in NO_SPLIT]
    if odd:
        message = (
            f"{odd[0].where}: slide {odd[0].id} is in split {odd[0].split!r}; "
            f"expected {', '.join(SPLITS)}, or an empty cell to leave it out"
        )
        out.findings.append(finding("error", "splits", message, [row.id for row in odd]))
    kept = [row for row in out.rows if row.split in SPLITS]
    out.dropped["no split"] += len(out.rows) - len(kept) - len(odd)
    out.rows = kept


def _check_leakage(out: Rows) -> None:
    seen: dict[str, Row] = {}
    leaks: dict[str, Row] = {}
    for row in out.rows:
        if seen.setdefault(row.patient, row).split != row.split:
            leaks.setdefault(row.patient, row)
    if leaks:
        row = next(iter(leaks.values()))
        other = seen[row.patient]
        message = (
            f"{row.where}: patient {row.patient} is in {row.split} (slide {row.id}) and in {other.split} "
            f"(slide {other.id}); keep every patient in one split"
        )
        out.findings.append(finding("error", "leakage", message, list(leaks)))


def _order_classes(out: Rows, file: CohortFile, resolve: Callable[[Path], Path]) -> None:
    """The class order, and labels that are not in it or differ from one only in case or spaces."""
    renamed: Mapping[str, str] = {}
    if isinstance(file.classes, Path):
        out.classes, renamed = read_label_dict(resolve(file.classes))
        if renamed and all(row.label is None or row.label in renamed for row in out.rows):
            out.rows = [replace(row, label=renamed[row.label] if row.label else None) for row in out.rows]
    elif file.classes is not None:
        out.classes = file.classes
    else:
        out.classes = tuple(sorted({row.label for row in out.rows if row.label is not None}))
    unknown = [row for row in out.rows if row.label is not None and row.label not in out.classes]
    if unknown:
        row = unknown[0]
        message = (
            f"{row.where}: slide {row.id} has label {row.label!r}, which is not among the "
            f"{len(out.classes)} classes; add it to `classes` or correct the table"
        )
        out.findings.append(finding("error", "labels", message, [row.id for row in unknown]))
    alike: dict[str, str] = {}
    for name in out.classes:
        plain = " ".join(name.split()).casefold()
        if plain in alike:
            message = f"classes {alike[plain]!r} and {name!r} differ only in case or spaces; make them one"
            out.findings.append(finding("error", "labels", message, [name]))
        alike[plain] = name
