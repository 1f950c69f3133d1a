"""The published numbers: all of them, each where its source has it, never among ours."""

from collections import Counter

import pytest

from slimbench.leaderboard.board import leaderboard
from slimbench.leaderboard.published import published, sources


@pytest.fixture(scope="module")
def slim():
    (source,) = [source for source in sources() if "SLIM" in source.source]
    return source


def value(slim, table: int, cohort: str, row: str, metric: str) -> float:
    (found,) = [r for r in slim.rows if (r.table, r.cohort, r.row) == (table, cohort, row)]
    return found.metrics[metric]


def test_every_table_has_all_its_rows_and_numbers(slim):
    assert Counter((row.table, row.cohort) for row in slim.rows) == {
        (1, "TCGA"): 3,
        (2, "TCGA"): 2,
        (3, "EBRAINS"): 3,
        (4, "TCGA"): 5,
        (4, "EBRAINS"): 5,
        (5, "17,182 patches"): 7,
    }
    numbers = Counter()
    for row in slim.rows:
        numbers[row.table] += len(row.metrics)
    assert numbers == {1: 18, 2: 8, 3: 18, 4: 60, 5: 12}
    assert {(t.table, t.cohort) for t in slim.tables} == {(r.table, r.cohort) for r in slim.rows}


@pytest.mark.parametrize(
    ("table", "cohort", "row", "metric", "expected"),
    [
        (1, "TCGA", "SLIM (No Pruning)", "kappa_linear", 0.927),
        (1, "TCGA", "SLIM (80%)", "accuracy", 0.921),
        (1, "TCGA", "Prov-GigaPath", "kappa_quadratic", 0.617),
        (2, "TCGA", "SLIM (No Pruning)", "i2t_mean_rank", 32.021),
        (2, "TCGA", "SLIM (80%)", "t2i_recall_at_10", 0.355),
        (3, "EBRAINS", "Prov-GigaPath", "auroc", 0.984),
        (4, "TCGA", "SLIM (90%)", "weighted_f1", 0.847),
        (4, "EBRAINS", "SLIM (50%)", "balanced_accuracy", 0.645),
        (5, "17,182 patches", "SLIM (90%)", "flops", 0.98e12),
        (5, "17,182 patches", "SLIM (50%)", "flops_of_unpruned", 0.72),
        (5, "17,182 patches", "Prov-GigaPath", "flops", 23.1e12),
    ],
)
def test_numbers_stand_where_the_paper_has_them(slim, table, cohort, row, metric, expected):
    assert value(slim, table, cohort, row, metric) == expected


def test_what_two_tables_both_say_is_said_alike(slim):
    for table, cohort in ((1, "TCGA"), (3, "EBRAINS")):
        (once,) = [r for r in slim.rows if (r.table, r.row) == (table, "SLIM (80%)")]
        (again,) = [r for r in slim.rows if (r.table, r.cohort, r.row) == (4, cohort, "SLIM (80%)")]
        assert once.metrics == again.metrics


@pytest.mark.parametrize(("cohort", "n"), [("TCGA", 63), ("EBRAINS", 232)])
def test_every_accuracy_is_a_whole_number_of_slides(slim, cohort, n):
    accuracies = [r.metrics["accuracy"] for r in slim.rows if r.cohort == cohort and "accuracy" in r.metrics]
    assert len(accuracies) == 8
    assert all(abs(round(accuracy * n) / n - accuracy) <= 0.0005 + 1e-9 for accuracy in accuracies)


def test_the_relative_column_follows_from_the_flops(slim):
    whole = value(slim, 5, "17,182 patches", "SLIM (No Pruning)", "flops")
    for row in slim.rows:
        if "flops_of_unpruned" in row.metrics:
            assert row.metrics["flops"] / whole == pytest.approx(row.metrics["flops_of_unpruned"], abs=0.006)


def test_published_tables_say_so_and_stand_apart_from_measured_ones():
    tables = published()
    assert len(tables) == 6
    for table in tables:
        assert table.title.startswith("Published: ") and table.columns[0].title == "published"
        assert any("as published, not measured here" in note for note in table.notes)
    assert leaderboard([]) == ()
    texts = [cell.text for cell in tables[1].rows[0]]
    assert "32.021" in texts and "0.316" in texts  # printed as they were printed
