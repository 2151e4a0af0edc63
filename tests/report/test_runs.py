"""Reading run folders: whole ones, and those left by kills, crashes and edits by hand."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from gnewton.errors import InputError
from gnewton.report.runs import find_runs, median_rates, read_run
from gnewton.training.csvlog import CsvLog
from tests.conftest import SMALL
from tests.report.builders import csv_text, falling, grouped_newton, row, update, write_run


def test_builders_write_what_runs_write(tmp_path):
    """The same rows through the builder and through the log of a run are the same bytes."""
    columns = ("epoch", "step", "train_loss", "test_loss", "fallback", "group")
    rows = [
        {"epoch": 1.0, "step": 12, "train_loss": 0.1 + 0.2, "fallback": True, "group": 'a,"b"'},
        {"epoch": 2.5, "step": 30, "test_loss": 1e-17, "fallback": False, "group": "head.weight"},
    ]
    with CsvLog(tmp_path / "log.csv", columns) as log:
        log.write(rows)
    assert (tmp_path / "log.csv").read_text() == csv_text(columns, rows)


def test_a_real_run_is_read(run, tmp_path):
    report = run([*SMALL, "optimizer=grouped_newton", "optimizer.period=2", "trainer.epochs=2", "seed=3"])
    (record,), problems = find_runs([tmp_path])
    raw = pd.read_csv(report.folder / "metrics.csv")
    assert problems == []
    assert (record.folder, record.status, record.seed) == (report.folder.resolve(), "done", 3)
    assert set(record.metrics) <= set(raw)
    pd.testing.assert_frame_equal(record.metrics, raw[list(record.metrics)], check_dtype=False)
    rates = pd.read_csv(report.folder / "rates.csv")
    moving = rates[~rates["warmup"]].pivot(index="step", columns="group", values="rate")
    assert list(record.rates.table.columns) == list(dict.fromkeys(rates["group"]))
    assert record.rates.table.to_numpy().tolist() == moving[record.rates.table.columns].to_numpy().tolist()
    assert len(record.rates.clocks) == rates["update"].max()
    assert record.environment["processes"] == 1


def test_runs_are_found_at_any_depth_and_once(tmp_path):
    write_run(tmp_path, "sweep/a/one", rows=falling([1.0]))
    write_run(tmp_path, "two", rows=falling([1.0]))
    (tmp_path / "link").symlink_to(tmp_path / "sweep" / "a" / "one")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.yaml").write_text("a: 1\n")  # no run: nothing beside it
    runs, problems = find_runs([tmp_path, tmp_path / "two", tmp_path / "sweep"])
    assert sorted(run.folder.name for run in runs) == ["one", "two"]
    assert problems == []


def test_a_linked_run_is_found(tmp_path):
    write_run(tmp_path, "elsewhere/one", rows=falling([1.0]))
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "job0").symlink_to(tmp_path / "elsewhere" / "one")
    (record,), _ = find_runs([tmp_path / "sweep"])
    assert record.folder.name == "one"


@pytest.mark.parametrize("result", ["done", "target", "limit", "diverged", "failed", "interrupted"])
def test_the_status_is_what_the_run_says(result, tmp_path):
    assert read_run(write_run(tmp_path, "run", result=result)).status == result


@pytest.mark.parametrize("way", ["gone", "empty", "header only", "cut"])
def test_lost_rows_are_reported(way, tmp_path):
    write_run(tmp_path, "good", rows=falling([1.0]))
    folder = write_run(tmp_path, "bad", rows=falling([1.0, 0.5]))
    path = folder / "metrics.csv"
    lines = path.read_text().splitlines(keepends=True)
    result = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps(result | {"status": "done", "step": 20}))
    path.write_text({"empty": "", "header only": lines[0], "cut": "".join(lines[:2])}.get(way, ""))
    if way == "gone":
        path.unlink()
    reason = {"gone": "is not there", "cut": "ends at step 10"}.get(way, "has no row")
    runs, problems = find_runs([tmp_path])
    assert [run.folder.name for run in runs] == ["good"]
    (problem,) = problems
    assert problem.startswith(f"left out: {path.resolve()} {reason}, although the run is done")


def test_a_killed_run_is_unfinished(tmp_path):
    record = read_run(write_run(tmp_path, "run", rows=falling([1.0, 0.5]), result=None))
    assert (record.status, len(record.metrics)) == ("unfinished", 2)


def test_a_run_killed_before_it_wrote_anything(tmp_path):
    folder = write_run(tmp_path, "run", result=None)
    for name in ("metrics.csv", "environment.json"):
        (folder / name).unlink()
    (folder / "environment.json").write_text("{}")
    (record,), problems = find_runs([tmp_path])
    assert (record.status, len(record.metrics), record.rates, problems) == ("unfinished", 0, None, [])


@pytest.mark.parametrize("content", ["", "epoch,st"])
def test_a_log_without_a_whole_line_has_no_rows(content, tmp_path):
    folder = write_run(tmp_path, "run", result=None, rates=[])
    for name in ("metrics.csv", "rates.csv"):
        (folder / name).write_text(content)
    (record,), problems = find_runs([tmp_path])
    assert (len(record.metrics), record.rates, problems) == (0, None, [])


def test_a_cut_last_line_does_not_count(tmp_path):
    folder = write_run(tmp_path, "run", rows=falling([1.0, 0.5]), rates=update(1, 0, {"a": 0.5}), result=None)
    for name, piece in (("metrics.csv", "3.0,30,0.1"), ("rates.csv", "2,1")):
        with (folder / name).open("a") as file:
            file.write(piece)
    record = read_run(folder)
    assert record.metrics["validation_loss"].tolist() == [1.0, 0.5]
    assert record.rates.table.to_numpy().tolist() == [[0.5]]


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("config.yaml", "a: [", "config.yaml cannot be read"),
        ("config.yaml", "- 1\n", "config.yaml holds no options"),
        ("config.yaml", "seed: x\n", "seed=x is no whole number"),
        ("result.json", "{", "result.json: cannot be read"),
        ("environment.json", "[]", "environment.json: holds no JSON object"),
        ("metrics.csv", "epoch,step\n1,2\n", "metrics.csv: lacks the columns train_seconds"),
        ("metrics.csv", "epoch,step,train_seconds\n1,2\n", "the column train_seconds has empty cells"),
        (
            "metrics.csv",
            "epoch,step,train_seconds\n1,x,2\n",
            "the column step holds something that is no number",
        ),
        ("metrics.csv", "epoch,step,train_seconds\n1,2,3,4\n1,2,3,4,5\n", "metrics.csv: cannot be read"),
        ("metrics.csv", b"epoch,\xff\n", "metrics.csv: cannot be read"),
        ("rates.csv", "update,step,group\n1,1,a\n", "rates.csv: lacks the column rate"),
    ],
)
def test_unreadable_runs_are_left_out_and_reported(name, content, complaint, tmp_path):
    write_run(tmp_path, "good", rows=falling([1.0]))
    folder = write_run(tmp_path, "bad", rows=falling([1.0]), rates=update(1, 0, {"a": 0.5}))
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    runs, problems = find_runs([tmp_path])
    assert [run.folder.name for run in runs] == ["good"]
    assert len(problems) == 1
    assert problems[0].startswith("left out: ")
    assert complaint in problems[0]


def test_nothing_to_be_found_is_an_error(tmp_path):
    with pytest.raises(InputError, match="there is no run folder in it or below"):
        find_runs([tmp_path])
    with pytest.raises(InputError, match="nowhere: no such folder"):
        find_runs([tmp_path / "nowhere"])


def test_if_all_are_unreadable_the_error_gives_the_reasons(tmp_path):
    (write_run(tmp_path, "bad") / "result.json").write_text("{")
    with pytest.raises(InputError, match="left out: .*result.json: cannot be read"):
        find_runs([tmp_path])


def test_rates_keep_the_order_of_the_partition_and_leave_out_the_warmup(tmp_path):
    rows = [
        *update(1, 0, {"z": 0.0, "a": 0.0}, warmup=True, summary_seconds=2.0),
        *update(2, 10, {"z": 0.5, "a": -0.25}, summary_seconds=3.0, solve_seconds=0.5),
        *update(3, 20, {"z": 0.75, "a": 0.125}, summary_seconds=4.0, solve_seconds=0.5),
    ]
    rates = read_run(write_run(tmp_path, "run", grouped_newton(), rates=rows)).rates
    assert list(rates.table.columns) == ["z", "a"]
    assert rates.table.index.tolist() == [10, 20]
    assert rates.table.to_numpy().tolist() == [[0.5, -0.25], [0.75, 0.125]]
    assert rates.clocks["summary_seconds"].tolist() == [2.0, 3.0, 4.0]


def test_groups_may_have_any_name(tmp_path):
    names = ["null", "nan", "", "1", "a,b", 'say "hi"', "Ünï 组"]
    rows = update(1, 0, {name: place / 8 for place, name in enumerate(names)})
    rates = read_run(write_run(tmp_path, "run", grouped_newton(), rates=rows)).rates
    assert list(rates.table.columns) == names
    assert rates.table.to_numpy().tolist() == [[place / 8 for place in range(len(names))]]


def test_the_median_of_rates_is_over_the_runs_that_made_the_update(tmp_path):
    """A run that was killed early does not cut off the others."""
    values = [[0.5, 0.25, 0.125], [1.0, 0.75], [4.0]]
    members = []
    for place, own in enumerate(values):
        rows = [line for k, rate in enumerate(own) for line in update(k + 1, 10 * k, {"a": rate})]
        members.append(read_run(write_run(tmp_path, str(place), grouped_newton(), rates=rows)).rates)
    median = median_rates(members)
    assert median.index.tolist() == [0, 10, 20]
    assert median["a"].tolist() == [1.0, 0.5, 0.125]


def test_rates_that_are_no_number(tmp_path):
    rows = [*update(1, 0, {"a": float("nan"), "b": 0.5}), *update(2, 10, {"a": float("nan"), "b": 0.5})]
    rates = read_run(write_run(tmp_path, "run", grouped_newton(), rates=rows)).rates
    assert list(median_rates([rates]).columns) == ["a", "b"]
    assert median_rates([rates])["a"].isna().all()


def test_nothing_but_warmup(tmp_path):
    rates = read_run(
        write_run(tmp_path, "run", grouped_newton(), rates=update(1, 0, {"a": 0.0}, warmup=True))
    ).rates
    assert median_rates([rates]) is None


def test_columns_of_other_versions_do_not_matter(tmp_path):
    folder = write_run(tmp_path, "run", rows=[row(1, 10, 1.0, validation_loss=0.5)])
    frame = pd.read_csv(folder / "metrics.csv").assign(new="text")
    frame.drop(columns=["peak_memory_mib", "test_accuracy"]).to_csv(folder / "metrics.csv", index=False)
    record = read_run(folder)
    assert "new" not in record.metrics
    assert record.metrics["validation_loss"].tolist() == [0.5]


def test_additional_entries_of_the_result_are_kept(tmp_path):
    folder = write_run(tmp_path, "run", result={"status": "diverged", "message": "the loss at step 5 is nan"})
    assert read_run(folder).result == json.loads((folder / "result.json").read_text())
