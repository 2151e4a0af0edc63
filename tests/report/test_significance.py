"""Means, intervals and paired tests, against SciPy and numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from gnewton.report.comparison import compare, write_tables
from gnewton.report.page import page
from gnewton.report.significance import (
    MeanInterval,
    PairedTest,
    holm,
    notes_on_means,
    table_of_means,
    tables_of_means,
)
from tests.report.builders import row, write_run


@pytest.mark.parametrize("count", [2, 3, 10])
def test_the_interval_is_that_of_student(count):
    values = np.random.default_rng(count).normal(size=count).tolist()
    interval = MeanInterval.over(values)
    low, high = stats.t.interval(0.95, count - 1, loc=np.mean(values), scale=stats.sem(values))
    assert (interval.mean, interval.low, interval.high) == pytest.approx(
        (np.mean(values), low, high), rel=1e-12
    )


def test_without_two_values_there_is_no_interval():
    one = MeanInterval.over([3.0])
    assert (one.mean, one.count) == (3.0, 1)
    assert math.isnan(one.low)
    assert math.isnan(MeanInterval.over([1.0, math.inf]).mean)
    assert MeanInterval.over([]).count == 0


@pytest.mark.parametrize("count", [2, 5, 9])
def test_the_paired_tests_are_those_of_scipy(count):
    draw = np.random.default_rng(count)
    first, second = draw.normal(0.5, 1, count), draw.normal(0, 1, count)
    test = PairedTest.between(dict(enumerate(first)), {**dict(enumerate(second)), 99: 5.0})
    assert test.difference.count == count
    assert test.difference.mean == pytest.approx(np.mean(first - second), rel=1e-12)
    assert test.t == pytest.approx(stats.ttest_rel(first, second).pvalue, rel=1e-10)
    exact = stats.permutation_test(
        (first - second,), np.sum, permutation_type="samples", alternative="two-sided", n_resamples=np.inf
    )
    assert test.flips == pytest.approx(exact.pvalue, rel=1e-12)
    assert test.flips >= 2.0 ** (1 - count)


def test_many_pairs_are_drawn():
    values = np.random.default_rng(0).normal(0.35, 1, 40)
    test = PairedTest.between(dict(enumerate(values)), dict.fromkeys(range(40), 0.0))
    assert test.flips == pytest.approx(test.t, rel=0.2)
    assert 0 < PairedTest.between(dict.fromkeys(range(40), 1.0), dict.fromkeys(range(40), 0.0)).flips < 1e-3


def test_pairs_that_cannot_be_compared():
    for first, second in (
        ({0: 1.0}, {0: 2.0}),
        ({0: 1.0, 1: 1.0}, {2: 1.0}),
        ({0: 1.0, 1: math.inf}, {0: 2.0, 1: 1.0}),
    ):
        test = PairedTest.between(first, second)
        assert math.isnan(test.t)
        assert math.isnan(test.flips)
    assert PairedTest.between({0: 1.0, 1: 1.0}, {0: 1.0, 1: 1.0}).t == 1.0
    assert math.isnan(PairedTest.between({0: 2.0, 1: 2.0}, {0: 1.0, 1: 1.0}).t)


def test_rounding_decides_nothing():
    equal = PairedTest.between({0: 0.3, 1: 0.4, 2: 0.7}, {0: 0.2, 1: 0.3, 2: 0.6})  # 0.1 up to rounding
    assert math.isnan(equal.t)
    assert equal.flips == 0.25
    none = PairedTest.between({0: 0.1, 1: 0.2, 2: -0.3}, dict.fromkeys(range(3), 0.0))  # their sum is 3e-17
    assert none.flips == 1.0


def test_holm_by_hand():
    assert holm([0.01, 0.04, math.nan, 0.03]) == pytest.approx([0.03, 0.06, math.nan, 0.06], nan_ok=True)
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.fixture
def runs():
    def of(setup, losses, problem="p"):
        return [
            {"problem": problem, "setup": setup, "seed": seed, "test_loss": loss}
            for seed, loss in enumerate(losses)
        ]

    def made(*parts):
        rows = [entry for part in parts for entry in of(*part)]
        others = ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy", "test_accuracy")
        return pd.DataFrame(rows).assign(**dict.fromkeys(others, math.nan))

    return made


def test_the_reference_is_the_best_mean_of_those_with_most_seeds(runs):
    table = table_of_means(runs(("a", [0.5, 0.6, 0.7]), ("b", [0.4, 0.5, 0.45]), ("c", [0.1])))
    assert set(table["reference"]) == {"b"}
    assert table["metric"].unique().tolist() == ["test_loss"]
    one = table.set_index("setup")
    assert one.loc["a", ["seeds", "pairs", "difference"]].tolist() == pytest.approx([3, 3, 0.15])
    assert one.loc["a", "p_flips"] == 0.25
    assert math.isnan(one.loc["c", "p_t"])
    (shown,) = tables_of_means(table)
    assert shown.title == "Mean test loss over the seeds, and the difference from the best"
    assert shown.rows[0][:2] == ["a", "3"]
    assert shown.rows[0][4].startswith("+0.15 (")
    assert [cells[2] for cells, marks in zip(shown.rows, shown.best, strict=True) if marks[2]] == [
        shown.rows[1][2]
    ]
    assert shown.rows[2][2:] == ["0.1", "1", "-0.3", "–", "–"]
    assert "cannot give less than p = 0.25" in "\n".join(notes_on_means(table))


def test_a_run_that_broke_down_has_no_mean(runs):
    table = table_of_means(runs(("a", [0.5, math.inf]), ("b", [0.4, 0.5])))
    (shown,) = tables_of_means(table)
    assert shown.rows[0] == ["a", "2", "–", "2", "–", "–", "–"]
    assert notes_on_means(table)[-1].startswith("a: no mean and no test")


def test_single_seeds_have_no_table(runs):
    table = table_of_means(runs(("a", [0.5]), ("b", [0.4])))
    assert (tables_of_means(table), notes_on_means(table)) == ([], [])


def test_in_the_files_and_on_the_page(tmp_path):
    for lr, losses in ((0.1, (0.5, 0.6, 0.55)), (0.2, (0.3, 0.35, 0.4))):
        for seed, loss in enumerate(losses):
            rows = [row(1, 10, 1.0, test_loss=loss, test_accuracy=1 - loss)]
            write_run(tmp_path, f"{lr}-{seed}", {"seed": seed, "optimizer.lr": lr}, rows=rows)
    comparison = compare([tmp_path])
    written = write_tables(comparison, tmp_path / "out")
    table = pd.read_csv(next(path for path in written if path.name == "means.csv"))
    assert table["metric"].tolist() == ["test_loss"] * 2 + ["test_accuracy"] * 2
    assert set(table["reference"]) == {"sgd lr=0.2"}
    for text in ((tmp_path / "out" / "tables.md").read_text(), page(comparison)):
        assert "Mean test accuracy over the seeds" in text
        assert "-20.00 %" in text
