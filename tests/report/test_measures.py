"""The measures of runs, against numbers worked out by hand or by another library."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gnewton.errors import InputError
from gnewton.report.comparison import compare
from gnewton.report.measures import MEASURES, SPREAD_FROM, MetricTarget, Spread, flat_table, measure_run
from gnewton.report.runs import read_run
from tests.report.builders import falling, grouped_newton, row, update, write_run

INF = math.inf


def _measured(folder, target=None) -> dict[str, float]:
    return measure_run(read_run(folder), target)


def test_a_run_by_hand(tmp_path):
    """12 steps an epoch; 6 s of training of which the summary took 1.5 and the solve 0.3."""
    rows = [
        row(1, 12, 2.0, train_loss=1.0, validation_loss=1.1, validation_accuracy=0.5, peak_memory_mib=700.0),
        row(2, 24, 4.5, train_loss=0.6, validation_loss=0.8, validation_accuracy=0.75, peak_memory_mib=900.0),
        row(
            3,
            36,
            6.0,
            train_loss=0.4,
            validation_loss=0.9,
            validation_accuracy=0.7,
            peak_memory_mib=800.0,
            test_loss=0.95,
            test_accuracy=0.65,
        ),
    ]
    rates = [
        *update(1, 0, {"a": 0.1, "b": 0.1}, summary_seconds=0.5, solve_seconds=0.1),
        *update(2, 20, {"a": 0.1, "b": 0.1}, summary_seconds=1.0, solve_seconds=0.2),
        *update(3, 36, {"a": 0.1, "b": 0.1}, summary_seconds=9.0, solve_seconds=9.0),  # after the last row
    ]
    measures = _measured(
        write_run(tmp_path, "run", grouped_newton(), rows=rows, rates=rates),
        MetricTarget("validation_accuracy", 0.7),
    )
    expected = {
        "target_seconds": 4.5,
        "target_steps": 24,
        "target_epochs": 2,
        "train_loss": 0.4,
        "train_accuracy": math.nan,
        "validation_loss": 0.9,
        "validation_accuracy": 0.7,
        "test_loss": 0.95,
        "test_accuracy": 0.65,
        "seconds_per_step": 6.0 / 36,
        "summary_share": 1.5 / 6.0,
        "solve_share": 0.3 / 6.0,
        "train_seconds": 6.0,
        "peak_memory_mib": 900.0,
        "epochs": 3,
        "steps": 36,
    }
    assert set(measures) == set(MEASURES) == set(expected)
    assert measures == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("status", ["diverged", "failed"])
def test_a_run_that_broke_down_has_the_worst_final_value(status, tmp_path):
    rows = falling([1.0, 0.5], validation_accuracy=0.9)
    measures = _measured(write_run(tmp_path, "run", rows=rows, result=status))
    assert (measures["validation_loss"], measures["test_loss"]) == (INF, INF)
    assert (measures["validation_accuracy"], measures["train_accuracy"]) == (-INF, -INF)
    assert measures["seconds_per_step"] == 0.1


@pytest.mark.parametrize("status", [None, "interrupted"])
def test_a_run_that_did_not_finish_has_no_final_value(status, tmp_path):
    measures = _measured(write_run(tmp_path, "run", rows=falling([1.0, 0.5]), result=status))
    assert math.isnan(measures["validation_loss"])
    assert (measures["epochs"], measures["seconds_per_step"]) == (2, 0.1)


def test_a_run_without_rows_has_nothing(tmp_path):
    measures = _measured(write_run(tmp_path, "run", result=None))
    assert all(math.isnan(value) for value in measures.values())


def test_a_run_without_steps_has_no_time_per_step(tmp_path):
    assert math.isnan(_measured(write_run(tmp_path, "run", rows=[row(0, 0, 0.0)]))["seconds_per_step"])


@pytest.mark.parametrize(
    ("target", "steps"),
    [
        ("validation_loss=0.5", 20),  # at the value itself, and at the first of two that pass
        ("validation_loss=0.45", 30),
        ("validation_loss=0.1", INF),
        ("validation_accuracy=0.6", 20),
        ("validation_accuracy=0.61", 30),
        ("validation_accuracy=1", INF),
    ],
)
def test_a_target_is_reached_at_the_first_row_that_shows_it(target, steps, tmp_path):
    rows = [
        row(1, 10, 1.0, validation_loss=0.9, validation_accuracy=0.5),
        row(2, 20, 2.0, validation_loss=0.5, validation_accuracy=0.6),
        row(3, 30, 3.0, validation_loss=0.4, validation_accuracy=0.9),
        row(4, 40, 4.0, validation_loss=0.7, validation_accuracy=0.7),
    ]
    measures = _measured(write_run(tmp_path, "run", rows=rows), MetricTarget.parse(target))
    assert (measures["target_steps"], measures["target_seconds"]) == (steps, steps / 10)


@pytest.mark.parametrize(
    ("status", "rows", "expected"),
    [
        ("done", falling([1.0, 0.9]), INF),  # too bad
        ("diverged", falling([1.0]), INF),
        ("diverged", [], INF),
        ("failed", [], INF),
        (None, [], INF),  # killed before it measured anything
        (None, falling([1.0]), INF),  # killed, or still on its way
        (None, falling([1.0, 0.4]), 20),  # killed, but only after the target
        ("diverged", falling([1.0, 0.4]), 20),
        ("done", [row(1, 10, 1.0, train_loss=0.1)], math.nan),  # not measured
        ("diverged", [row(1, 10, 1.0, train_loss=0.1)], INF),
    ],
)
def test_runs_that_miss_a_target(status, rows, expected, tmp_path):
    measures = _measured(
        write_run(tmp_path, "run", rows=rows, result=status), MetricTarget("validation_loss", 0.5)
    )
    assert measures["target_steps"] == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0.5", "must be metric=value"),
        ("validation_acuracy=0.5", "did you mean 'validation_accuracy'"),
        ("running_loss=0.5", "the metric must be one of train_loss"),
        ("validation_loss=low", "must be a finite number"),
        ("validation_loss=nan", "must be a finite number"),
        ("validation_loss=inf", "must be a finite number"),
    ],
)
def test_bad_targets(text, message):
    with pytest.raises(InputError, match=message) as refused:
        MetricTarget.parse(text)
    assert text in str(refused.value)


NUMBERS = st.floats(-1e6, 1e6)


@given(st.lists(NUMBERS, min_size=1, max_size=30))
def test_spreads_are_those_of_numpy(values):
    spread = Spread.over(values)
    share = 0.25 if len(values) >= SPREAD_FROM else 0.0
    expected = np.quantile(values, [0.5, share, 1 - share])
    assert [spread.median, spread.low, spread.high] == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert spread.count == len(values)


@given(st.lists(st.one_of(NUMBERS, st.just(INF), st.just(math.nan)), max_size=30))
def test_misses_count_and_what_was_not_measured_does_not(values):
    spread = Spread.over(values)
    known = [value for value in values if not math.isnan(value)]
    assert spread.count == len(known)
    if not known:
        assert math.isnan(spread.median)
        return
    assert spread.low <= spread.median <= spread.high
    missed = sum(map(math.isinf, known))
    if 2 * missed > len(known):  # most runs missed: so does the median
        assert spread.median == INF
    if 2 * (len(known) - missed) > len(known):
        assert math.isfinite(spread.median)


@given(st.lists(NUMBERS, min_size=1, max_size=12), st.integers(1, 5))
def test_a_miss_never_makes_a_set_up_better(values, misses):
    before, after = Spread.over(values), Spread.over([*values, *[INF] * misses])
    assert after.median >= before.median


def _seeds(tmp_path, name, options, losses, statuses=None):
    for seed, loss in enumerate(losses):
        write_run(
            tmp_path,
            f"{name}-{seed}",
            {**options, "seed": seed},
            rows=falling([2.0, loss], seconds=1 + seed),
            result="done" if statuses is None else statuses[seed],
        )


def test_the_table_of_set_ups(tmp_path):
    _seeds(tmp_path, "sgd", {}, [0.4, 0.6, 0.5, 0.9, 0.3], ["done", "limit", "target", "diverged", None])
    _seeds(tmp_path, "gn", grouped_newton(), [0.2, 0.1])
    comparison = compare([tmp_path], target=MetricTarget("validation_loss", 0.5))
    sgd = comparison.table.set_index("setup").loc["sgd"]
    counts = ["runs", "ended", "diverged", "failed", "unfinished", "reached", "missed"]
    assert sgd[counts].tolist() == [5, 3, 1, 0, 1, 3, 2]
    # seed 0 reaches it in its second epoch of 1 s, seed 2 of 3 s, seed 4 (killed later) of 5 s
    assert sgd["target_seconds"] == Spread(median=10.0, low=6.0, high=INF, count=5)
    assert sgd["target_steps"] == Spread(20, 20, INF, 5)
    # ends: 0.4, 0.6, 0.5, ∞ (diverged); none for the killed run
    assert sgd["validation_loss"] == Spread(pytest.approx(0.55), 0.4, INF, 4)
    assert sgd["seconds_per_step"] == Spread(*map(pytest.approx, (0.3, 0.2, 0.4)), 5)
    gn = comparison.table.set_index("setup").loc["grouped_newton"]
    assert gn["validation_loss"] == Spread(pytest.approx(0.15), 0.1, 0.2, 2)
    assert gn["train_loss"].count == 0


def test_unmeasured_metrics_are_missing_in_broken_runs_too(tmp_path):
    """Such as the accuracy of an autoencoder."""
    _seeds(tmp_path, "sgd", {}, [0.4, 0.9], ["done", "diverged"])
    runs = compare([tmp_path]).runs
    assert runs["validation_loss"].tolist() == [0.4, INF]
    assert runs[["train_loss", "validation_accuracy", "test_loss"]].isna().all(axis=None)


def test_if_all_diverge_at_once_the_losses_say_so(tmp_path):
    write_run(tmp_path, "run", result="diverged")
    runs = compare([tmp_path]).runs
    assert runs.loc[0, ["train_loss", "validation_loss", "test_loss"]].tolist() == [INF] * 3
    assert math.isnan(runs.loc[0, "test_accuracy"])


def test_the_flat_table_says_the_same(tmp_path):
    _seeds(tmp_path, "sgd", {}, [0.4, 0.9], ["done", "diverged"])
    flat = flat_table(compare([tmp_path]).table)
    assert flat.loc[0, "validation_loss_median"] == INF
    assert flat.loc[0, "validation_loss_low"] == 0.4
    assert flat.loc[0, "validation_loss_count"] == 2
    assert flat.loc[0, "train_loss_count"] == 0
    assert {f"{name}_{part}" for name in MEASURES for part in ("median", "low", "high", "count")} <= set(flat)


def test_the_target_of_the_configuration_is_taken(tmp_path):
    options = {"trainer.target": {"metric": "validation_loss", "value": 0.5}}
    _seeds(tmp_path, "sgd", options, [0.4, 0.6])
    comparison = compare([tmp_path])
    assert str(comparison.targets["sgd"]) == "validation loss ≤ 0.5"
    assert comparison.runs["target_steps"].tolist() == [20, INF]
    overridden = compare([tmp_path], target=MetricTarget("validation_loss", 0.7))
    assert overridden.runs["target_steps"].tolist() == [20, 20]


def test_a_target_that_nobody_measured_is_refused(tmp_path):
    _seeds(tmp_path, "sgd", {}, [0.4])
    with pytest.raises(InputError, match="--target train_loss=0.5: no run has measured train_loss"):
        compare([tmp_path], target=MetricTarget("train_loss", 0.5))


def test_a_target_that_some_have_not_measured_is_noted(tmp_path):
    _seeds(tmp_path, "sgd", {}, [0.4])
    write_run(tmp_path, "gn", grouped_newton(), rows=[row(1, 10, 1.0, train_loss=0.3)])
    comparison = compare([tmp_path], target=MetricTarget("validation_loss", 0.5))
    assert "grouped_newton: the metric of the target was not measured" in comparison.notes


@pytest.mark.parametrize(
    ("losses", "note"),
    [
        ({"sgd": [0.5]}, "one seed each: nothing here tells a difference from chance"),
        ({"sgd": [0.5, 0.4], "gn": [0.3]}, "the set-ups have different numbers of runs (1 to 2)"),
        ({"sgd": [0.5, 0.4]}, "no target is set: --target metric=value adds what it takes to reach one"),
    ],
)
def test_notes(losses, note, tmp_path):
    for name, values in losses.items():
        _seeds(tmp_path, name, grouped_newton() if name == "gn" else {}, values)
    assert note in compare([tmp_path]).notes


def test_a_note_says_that_runs_ended_at_different_epochs(tmp_path):
    _seeds(tmp_path, "sgd", {}, [0.5])
    assert not any("different numbers of epochs" in note for note in compare([tmp_path]).notes)
    write_run(tmp_path, "gn", grouped_newton(), rows=falling([0.3]))
    assert any("different numbers of epochs" in note for note in compare([tmp_path]).notes)


def test_the_row_of_step_0_reaches_no_target_and_costs_nothing(tmp_path):
    start = row(0, 0, 0.0, validation_loss=0.2)
    folder = write_run(tmp_path, "one", rows=[start, *falling([0.9, 0.4], step=10)])
    run = read_run(folder)
    target = MetricTarget("validation_loss", 0.5)
    assert target.reached(run) == {"train_seconds": 2.0, "step": 20.0, "epoch": 2.0}
    assert target.reached(replace(run, metrics=run.metrics[:1]))["step"] == math.inf
    values = measure_run(replace(run, metrics=run.metrics[:1]), None)
    assert all(math.isnan(values[name]) for name in ("steps", "train_seconds", "seconds_per_step"))
