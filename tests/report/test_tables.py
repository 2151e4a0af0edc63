"""The printed tables: cells, marks, and the escapes of Markdown and terminals."""

from __future__ import annotations

import math
import re

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gnewton.report.comparison import compare, markdown_page, write_tables
from gnewton.report.measures import MetricTarget, Spread
from gnewton.report.tables import Column, as_markdown, as_text, significant
from tests.report.builders import falling, grouped_newton, row, write_run

INF = math.inf
NAN = math.nan


@pytest.mark.parametrize(
    ("column", "spread", "broken", "text"),
    [
        (Column("loss", "x"), Spread(0.51234, 0.51234, 0.51234, 1), (), "0.5123"),
        (Column("loss", "x"), Spread(0.5, 0.25, 1.5, 3), (), "0.5 (0.25…1.5)"),
        (Column("loss", "x"), Spread(0.5, 0.25, INF, 3), ("diverged",), "0.5 (0.25…diverged)"),
        (Column("loss", "x"), Spread(INF, 0.25, INF, 3), ("failed",), "failed (0.25…failed)"),
        (Column("loss", "x"), Spread(INF, INF, INF, 2), ("diverged", "failed"), "diverged/failed"),
        (Column("loss", "x"), Spread(NAN, NAN, NAN, 0), (), "–"),
        (Column("share", "x", 100, " %"), Spread(0.5, 0.25, 1.0, 3), (), "50.0 % (25.0…100.0)"),
        (
            Column("share", "x", 100, " %"),
            Spread(-INF, -INF, 0.5, 2),
            ("diverged",),
            "diverged (diverged…50.0)",
        ),
        (Column("s", "x", infinite="missed"), Spread(INF, 3.0, INF, 3), ("diverged",), "missed (3…missed)"),
        (Column("ms", "x", 1000), Spread(0.0123456, 0.0123456, 0.0123456, 1), (), "12.35"),
    ],
)
def test_cells(column, spread, broken, text):
    row = {"x": spread, "diverged": int("diverged" in broken), "failed": int("failed" in broken)}
    assert column.cell(row) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1, "1"),
        (1.5, "1.5"),
        (0.123456, "0.1235"),
        (123456, "123456"),
        (1234567, "1.235e+06"),
        (99.99999, "100"),
        (0.00012345, "0.0001234"),
        (1.5e-7, "1.5e-07"),
        (-2.34567, "-2.346"),
        (1200, "1200"),
    ],
)
def test_numbers(value, text):
    assert significant(value) == text


@given(st.floats(1e-12, 1e12))
def test_numbers_keep_four_digits(value):
    assert float(significant(value)) == pytest.approx(value, rel=5.01e-4)


def _two_set_ups(tmp_path):
    ends = {"sgd": ({}, [0.5, 0.75]), "gn": (grouped_newton(), [0.25, 0.5])}
    for name, (options, losses) in ends.items():
        for seed, loss in enumerate(losses):
            rows = falling([1.0, loss], validation_accuracy=1 - loss)
            write_run(tmp_path, f"{name}{seed}", {**options, "seed": seed}, rows=rows)
    return compare([tmp_path], target=MetricTarget("validation_loss", 0.5))


def test_the_whole_text(tmp_path):
    """The whole printed text, literally."""
    text = as_text(_two_set_ups(tmp_path).tables())
    assert text[: text.index("Mean validation accuracy")] == (
        """\
To the target: validation loss ≤ 0.5

set-up          reached         training s               steps             epochs
---------------------------------------------------------------------------------
grouped_newton   2 of 2                  2                  20                  2
sgd              1 of 2  missed (2…missed)  missed (20…missed)  missed (2…missed)

Loss at the end

set-up          runs  epochs        validation
----------------------------------------------
grouped_newton     2       2  0.375 (0.25…0.5)
sgd                2       2  0.625 (0.5…0.75)

Accuracy at the end

set-up                  validation
----------------------------------
grouped_newton  62.5 % (50.0…75.0)
sgd             37.5 % (25.0…50.0)

Cost

set-up          training s  ms/step
-----------------------------------
grouped_newton           2      100
sgd                      2      100

Mean validation loss over the seeds, and the difference from the best

set-up          seeds            mean (95 %)  pairs    difference (95 %)  p, t  p, flips
----------------------------------------------------------------------------------------
grouped_newton      2   0.375 (-1.213…1.963)      –                    –     –         –
sgd                 2  0.625 (-0.9633…2.213)      2  +0.25 (+0.25…+0.25)     –       0.5

"""
    )


def test_markdown_marks_the_best_in_bold(tmp_path):
    text = as_markdown(_two_set_ups(tmp_path).tables())
    assert "| set-up | runs | epochs | validation |\n|---|---:|---:|---:|\n" in text
    assert "| grouped_newton | 2 | 2 | **0.375 (0.25…0.5)** |" in text
    assert "| sgd | 2 | 2 | 0.625 (0.5…0.75) |" in text
    assert "| grouped_newton | **62.5 % (50.0…75.0)** |" in text
    assert "| grouped_newton | 2 of 2 | **2** | **20** | **2** |" in text


def test_ties_are_all_best_and_one_alone_is_not(tmp_path):
    write_run(tmp_path, "a", rows=falling([0.5]))
    (loss, *_) = compare([tmp_path]).tables()
    assert not any(map(any, loss.best))
    write_run(tmp_path, "b", grouped_newton(), rows=falling([0.5]))
    (loss, *_) = compare([tmp_path]).tables()
    assert [marks[loss.headings.index("validation")] for marks in loss.best] == [True, True]


def test_best_is_within_a_problem(tmp_path):
    for data, losses in (("digits", (0.1, 0.2)), ("mnist", (0.5, 0.4))):
        for name, loss, options in zip(("sgd", "gn"), losses, ({}, grouped_newton()), strict=True):
            write_run(tmp_path, f"{data}{name}", {"data.name": data, **options}, rows=falling([loss]))
    (loss, *_) = compare([tmp_path]).tables()
    column = loss.headings.index("validation")
    best = {cells[0] for cells, marks in zip(loss.rows, loss.best, strict=True) if marks[column]}
    assert best == {"mlp digits: sgd", "mlp mnist: grouped_newton"}


def test_bad_ends_are_counted_in_the_table(tmp_path):
    for seed, status in enumerate(["done", "diverged", "diverged", "failed", None, "interrupted"]):
        write_run(tmp_path, str(seed), {"seed": seed}, rows=falling([0.5]), result=status)
    (loss, *_) = compare([tmp_path]).tables()
    assert loss.rows[0][1] == "6 (2 diverged, 1 failed, 2 unfinished)"


def test_unmeasured_metrics_have_no_column(tmp_path):
    write_run(tmp_path, "a", rows=[row(1, 10, 1.0, test_loss=0.5)])
    tables = {table.title: table for table in compare([tmp_path]).tables()}
    assert set(tables) == {"Loss at the end", "Cost"}
    assert tables["Loss at the end"].headings == ["set-up", "runs", "epochs", "test"]
    assert tables["Cost"].headings == ["set-up", "training s", "ms/step"]


def test_columns_line_up(tmp_path):
    for line in as_text(_two_set_ups(tmp_path).tables()).split("\n\n")[1::2]:
        head, rule, *rows = line.splitlines()
        assert set(rule) == {"-"}
        assert len(rule) == max(map(len, (head, *rows)))
        assert len({len(text) for text in (head, *rows)}) == 1  # right-aligned to the last column


def test_markdown_survives_odd_names(tmp_path):
    write_run(tmp_path, "a", {"optimizer.extra": "a|b"}, rows=falling([0.5]))
    write_run(tmp_path, "b", {"optimizer.extra": "<i>[4*8,2*6]"}, rows=falling([0.5]))
    text = as_markdown(compare([tmp_path]).tables())
    rows = [line for line in text.splitlines() if line.startswith("| sgd")]
    assert all(
        len(re.findall(r"(?<!\\)\|", line)) == len(re.findall(r"(?<!\\)\|", rows[0])) for line in rows[:2]
    )
    assert r"extra=a\|b" in text
    assert r"extra=\<i>[4\*8,2\*6]" in text


def test_the_files(tmp_path):
    comparison = _two_set_ups(tmp_path)
    paths = write_tables(comparison, tmp_path / "new" / "folder")
    assert [path.name for path in paths] == ["runs.csv", "setups.csv", "means.csv", "tables.md"]
    runs = pd.read_csv(paths[0])
    assert runs["target_steps"].tolist() == [20, 20, 20, INF]
    assert runs["folder"].map(lambda text: text.rpartition("/")[2]).tolist() == ["gn0", "gn1", "sgd0", "sgd1"]
    setups = pd.read_csv(paths[1])
    assert setups["validation_loss_median"].tolist() == [0.375, 0.625]
    assert setups["target_steps_median"].tolist() == [20, INF]
    page = paths[3].read_text(encoding="utf-8")
    assert page == markdown_page(comparison)
    for note in comparison.notes:
        assert f"- {note}\n" in page
