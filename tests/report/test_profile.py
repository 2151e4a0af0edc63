"""Performance profiles against the definition of Dolan and Moré, and the sensitivity to the learning rate."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gnewton.report.comparison import compare
from gnewton.report.curves import Profile, find_profile, find_sensitivities
from gnewton.report.measures import MetricTarget
from tests.report.builders import falling, grouped_newton, write_run

INF = math.inf
TARGET = MetricTarget("validation_loss", 0.5)


def _reach(tmp_path, name, options, epochs, *, seed=0, seconds=1.0):
    """A run that reaches the target in that epoch of four; None: never."""
    losses = [0.4 if epochs is not None and epoch >= epochs else 1.0 for epoch in range(1, 5)]
    rows = falling(losses, seconds=seconds)
    return write_run(tmp_path, f"{name}{seed}", {**options, "seed": seed}, rows=rows)


def test_ratios_by_hand(tmp_path):
    for seed, (sgd, gn) in enumerate([(2, 1), (1, 4), (None, 3), (None, None)]):
        _reach(tmp_path, "sgd", {}, sgd, seed=seed)
        _reach(tmp_path, "gn", grouped_newton(), gn, seed=seed, seconds=3.0)
    comparison = compare([tmp_path], target=TARGET)
    steps = find_profile(comparison, "target_steps")
    assert steps.ratios["sgd"].tolist() == [2, 1, INF]  # the last seed, which nobody solved, is no instance
    assert steps.ratios["grouped_newton"].tolist() == [1, 4, 1]
    assert [steps.share("sgd", factor) for factor in (1, 1.9, 2, 100)] == [1 / 3, 1 / 3, 2 / 3, 2 / 3]
    assert steps.steps("grouped_newton", 5.0) == ([1, 4, 5], [2 / 3, 1, 1])
    assert steps.largest == 4
    seconds = find_profile(comparison, "target_seconds")
    assert seconds.ratios["sgd"].tolist() == [1, 1, INF]
    assert seconds.ratios["grouped_newton"].tolist() == [1.5, 12, 1]


def test_an_instance_that_not_all_ran_does_not_count(tmp_path):
    _reach(tmp_path, "sgd", {}, 1, seed=0)
    _reach(tmp_path, "sgd", {}, 2, seed=1)
    _reach(tmp_path, "gn", grouped_newton(), 2, seed=1)
    assert len(find_profile(compare([tmp_path], target=TARGET), "target_steps").ratios) == 1


def test_different_targets_are_different_instances(tmp_path):
    """An easier target does not make a solver the faster one."""
    for name, options, value in (("sgd", {}, 0.5), ("gn", grouped_newton(), 1.5)):
        _reach(
            tmp_path, name, {**options, "trainer.target": {"metric": "validation_loss", "value": value}}, 2
        )
    comparison = compare([tmp_path])
    assert find_profile(comparison, "target_steps") is None
    target = next(table for table in comparison.tables() if table.title == "To the target")
    assert "target" in target.headings
    assert not any(map(any, target.best))


@pytest.mark.parametrize("others", [[], [("gn", grouped_newton(), None)]])
def test_no_profile_without_two_solvers_or_without_a_solution(others, tmp_path):
    _reach(tmp_path, "sgd", {}, None if others else 1)
    for name, options, epochs in others:
        _reach(tmp_path, name, options, epochs)
    assert find_profile(compare([tmp_path], target=TARGET), "target_steps") is None


def test_no_profile_without_a_target(tmp_path):
    _reach(tmp_path, "sgd", {}, 1)
    _reach(tmp_path, "gn", grouped_newton(), 1)
    assert find_profile(compare([tmp_path]), "target_steps") is None


def test_problems_share_a_profile(tmp_path):
    for place, data in enumerate(("digits", "mnist")):
        for seed in (0, 1):
            _reach(
                tmp_path / data, "sgd", {"data.name": data, "optimizer.lr": 0.1 + place}, 1 + seed, seed=seed
            )
            _reach(tmp_path / data, "gn", {"data.name": data, **grouped_newton()}, 2, seed=seed)
    profile = find_profile(compare([tmp_path], target=TARGET), "target_epochs")
    assert list(profile.ratios.columns) == ["grouped_newton", "sgd"]
    assert profile.ratios["grouped_newton"].tolist() == [2, 1, 2, 1]


TIMES = st.one_of(st.floats(0.01, 1e6), st.just(INF))


@given(
    st.lists(st.tuples(TIMES, TIMES, TIMES), min_size=1, max_size=12), st.floats(1, 100), st.floats(1, 100)
)
def test_profiles_rise_from_the_wins_to_the_share_solved(times, one, other):
    table = pd.DataFrame(times, columns=["a", "b", "c"])
    table = table[np.isfinite(table.min(axis=1))]
    if table.empty:
        return
    ratios = table.div(table.min(axis=1), axis=0)
    profile = Profile("target_steps", ratios)
    wins = 0.0
    for solver in ratios:
        low, high = sorted((one, other))
        assert 0 <= profile.share(solver, low) <= profile.share(solver, high) <= 1
        assert profile.share(solver, profile.largest) == np.isfinite(table[solver]).mean()
        x, y = profile.steps(solver, profile.end)
        assert (x[0], x[-1]) == (1.0, profile.end)
        assert (np.diff(x) > 0).all()
        assert (np.diff(y) >= 0).all()
        assert y == [np.mean([r <= factor for r in ratios[solver]]) for factor in x]
        wins += profile.share(solver, 1.0)
    assert wins >= 1 - 1e-9  # somebody is the best on each


# ---- sensitivity to the learning rate


def _end(tmp_path, folder, options, loss, **more):
    write_run(tmp_path, folder, options, rows=falling([2.0, loss]), **more)


def test_sensitivity_by_hand(tmp_path):
    ends = {0.1: [0.5, 0.7], 0.01: [0.9], 1.0: [0.4, INF]}
    for lr, losses in ends.items():
        for seed, loss in enumerate(losses):
            _end(
                tmp_path,
                f"{lr}{seed}",
                {"optimizer.lr": lr, "seed": seed},
                min(loss, 9.0),
                result="diverged" if loss == INF else "done",
            )
    _end(tmp_path, "killed", {"optimizer.lr": 1.0, "seed": 2}, 0.1, result=None)
    metric, (sensitivities,) = find_sensitivities(compare([tmp_path]).setups)
    assert (metric, sensitivities.label, sensitivities.problem, sensitivities.option) == (
        "validation_loss",
        "sgd",
        "mlp digits",
        "optimizer.lr",
    )
    assert sensitivities.rates == [0.01, 0.1, 1.0]
    assert sensitivities.points == [[0.9], [0.5, 0.7], [0.4, INF]]
    assert [spread.median for spread in sensitivities.losses] == pytest.approx([0.9, 0.6, INF])


def test_methods_are_told_apart_by_what_is_not_the_rate(tmp_path):
    for momentum in (0.0, 0.9):
        for lr in (0.1, 0.2):
            _end(tmp_path, f"{momentum}{lr}", {"optimizer.lr": lr, "optimizer.momentum": momentum}, 0.5)
    for step_size in (0.1, 0.3):
        _end(tmp_path, f"gn{step_size}", grouped_newton(step_size=step_size), 0.5)
    _end(tmp_path, "adam", {"optimizer": {"name": "adam", "lr": 0.1}}, 0.5)  # one rate alone
    _, sensitivities = find_sensitivities(compare([tmp_path]).setups)
    assert [(method.label, method.option) for method in sensitivities] == [
        ("grouped_newton", "optimizer.step_size"),
        ("sgd momentum=0", "optimizer.lr"),
        ("sgd momentum=0.9", "optimizer.lr"),
    ]


def test_a_method_has_one_name_on_all_problems(tmp_path):
    for data in ("digits", "mnist"):
        for lr in (0.1, 0.2):
            _end(tmp_path, f"{data}{lr}", {"optimizer.lr": lr, "data.name": data, "name": f"x-{data}"}, 0.5)
    _, sensitivities = find_sensitivities(compare([tmp_path]).setups)
    assert [(method.label, method.problem) for method in sensitivities] == [
        ("sgd", "mlp digits"),
        ("sgd", "mlp mnist"),
    ]


@pytest.mark.parametrize("column", ["train_loss", "test_loss"])
def test_the_measured_loss_is_used(column, tmp_path):
    for lr in (0.1, 0.2):
        rows = [{"epoch": 1.0, "step": 1, "train_seconds": 1.0, column: lr}]
        write_run(tmp_path, str(lr), {"optimizer.lr": lr}, rows=rows)
    metric, (sensitivities,) = find_sensitivities(compare([tmp_path]).setups)
    assert (metric, sensitivities.points) == (column, [[0.1], [0.2]])
