"""Two runs compared value by value, on files made by hand."""

from __future__ import annotations

import json

import pytest

from gnewton.errors import InputError
from gnewton.report.reproduction import compare_logs, environment_differences
from gnewton.report.runs import read_run

HEADER = "epoch,step,train_loss,test_accuracy,train_seconds,samples_per_second,peak_memory_mib"
ROWS = ["1.0,10,0.5,,1.25,100.0,30.0", "2.0,20,0.25,0.75,2.5,101.0,31.0"]


def _run(folder, rows=ROWS, status="done", environment=None, rates=None):
    folder.mkdir()
    (folder / "config.yaml").write_text("seed: 0\n")
    (folder / "metrics.csv").write_text("\n".join([HEADER, *rows]) + "\n")
    (folder / "environment.json").write_text(json.dumps(environment or {}))
    if status:
        (folder / "result.json").write_text(json.dumps({"status": status}))
    if rates:
        (folder / "rates.csv").write_text("\n".join(["update,step,group,rate,solve_seconds", *rates]) + "\n")
    return read_run(folder)


def test_clocks_are_not_compared(tmp_path):
    other = ["1.0,10,0.5,,9.0,1.0,1.0", "2.0,20,0.25,0.75,9.5,1.0,1.0"]
    (log,) = compare_logs(_run(tmp_path / "a"), _run(tmp_path / "b", other))
    assert (log.same, log.rows, log.columns) == (True, (2, 2), 4)
    assert list(log.lines()) == ["metrics.csv: 2 rows, 4 of 4 columns the same"]


def test_what_differs_is_named(tmp_path):
    other = ["1.0,10,0.5,0.5,1,1,1", "2.0,20,0.2500005,0.75,1,1,1"]
    first, second = _run(tmp_path / "a"), _run(tmp_path / "b", other)
    (log,) = compare_logs(first, second)
    assert not log.same
    assert list(log.lines()) == [
        "metrics.csv: 2 rows, 2 of 4 columns the same",
        "  train_loss: 1 rows differ, from step 20 on, by up to 2.0e-06 of the value",
        "  test_accuracy: 1 rows differ, from step 10 on",
    ]
    (log,) = compare_logs(first, second, tolerance=1e-5)
    assert [difference.column for difference in log.differences] == ["test_accuracy"]


def test_rows_must_be_as_many_unless_the_first_run_did_not_end(tmp_path):
    (log,) = compare_logs(_run(tmp_path / "a"), _run(tmp_path / "b", ROWS[:1]))
    assert not log.same
    (log,) = compare_logs(_run(tmp_path / "c", ROWS[:1]), _run(tmp_path / "d"))
    assert not log.same
    (log,) = compare_logs(_run(tmp_path / "e", ROWS[:1], status=None), _run(tmp_path / "f"))
    assert log.same
    assert next(log.lines()).startswith("metrics.csv: 1 and 2 rows")


def test_an_older_run_has_no_row_of_step_0(tmp_path):
    start = "0.0,0,2.3,0.1,0.0,,30.0"
    (log,) = compare_logs(_run(tmp_path / "a"), _run(tmp_path / "b", [start, *ROWS]))
    assert log.same
    (log,) = compare_logs(_run(tmp_path / "c", [start, *ROWS]), _run(tmp_path / "d"))
    assert log.lacking == (0,)


def test_rows_are_matched_by_their_step(tmp_path):
    stop = "1.5,15,0.3,,1,1,1"
    resumed = {"resumed": [{"step": 15}]}
    second = _run(tmp_path / "b")
    (log,) = compare_logs(_run(tmp_path / "a", [ROWS[0], stop, ROWS[1]], environment=resumed), second)
    assert (log.same, log.rows, log.stops) == (True, (3, 2), (15,))
    assert list(log.lines())[1:] == ["  step 15: only where that run was stopped and went on later"]
    (log,) = compare_logs(_run(tmp_path / "c", [ROWS[0], stop, ROWS[1]]), second)
    assert (log.same, log.lacking) == (False, (15,))
    assert list(log.lines())[1:] == ["  step 15: only one of the runs has this row"]
    changed = [ROWS[0], stop, ROWS[1].replace("0.25", "0.26")]
    (log,) = compare_logs(_run(tmp_path / "d", changed, environment=resumed), second)
    assert [(difference.column, difference.step) for difference in log.differences] == [("train_loss", 20)]


def test_a_row_in_between_is_no_end(tmp_path):
    """A first run that was killed may lack rows only at its end."""
    first = _run(tmp_path / "a", [ROWS[1]], status=None)
    (log,) = compare_logs(first, _run(tmp_path / "b"))
    assert log.lacking == (10,)


def test_rates_are_compared_too(tmp_path):
    first = _run(tmp_path / "a", rates=["1,0,all,0.5,1.0", "2,10,all,0.25,1.0"])
    second = _run(tmp_path / "b", rates=["1,0,all,0.5,3.0", "2,10,all,0.5,3.0"])
    metrics, rates = compare_logs(first, second)
    assert metrics.same
    assert [(difference.column, difference.step, difference.largest) for difference in rates.differences] == [
        ("rate", 10, 0.5)
    ]
    without = _run(tmp_path / "c")
    assert not compare_logs(first, without)[1].same


def test_environment(tmp_path):
    one = {"time": "1", "threads": 2, "packages": {"torch": "2.11", "numpy": "2"}, "git": {"dirty": False}}
    other = {"time": "2", "threads": 1, "packages": {"torch": "2.14", "numpy": "2"}, "git": None}
    differences = environment_differences(
        _run(tmp_path / "a", environment=one), _run(tmp_path / "b", environment=other)
    )
    assert differences == ["threads: 2 → 1", "packages.torch: 2.11 → 2.14", "git.dirty: False → –"]


def test_a_log_that_cannot_be_read(tmp_path):
    first, second = _run(tmp_path / "a"), _run(tmp_path / "b")
    (second.folder / "metrics.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="lacks the column step"):
        compare_logs(first, second)
