"""Search spaces and samplers: their values, bounds and reproducibility."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gnewton.errors import InputError
from gnewton.tuning.space import SAMPLERS, Dimension, ScoredPoint, Space, overrides_of

SPACE = Space.parse(
    "sgd",
    {
        "optimizer.lr": {"low": 1e-4, "high": 1.0, "log": True},
        "optimizer.momentum": {"low": 0.0, "high": 0.99},
        "optimizer.period": {"low": 1, "high": 4, "integer": True},
        "optimizer/schedule": {"values": ["constant", "cosine"]},
    },
)


def test_values_across_an_interval():
    log = Dimension.parse("a", {"low": 1e-4, "high": 1.0, "log": True})
    assert [log.value(share) for share in (0.0, 0.25, 0.5, 1.0)] == [1e-4, 1e-3, 1e-2, 1.0]
    plain = Dimension.parse("a", {"low": 0, "high": 8})
    assert [plain.value(share) for share in (0.0, 0.25, 1.0)] == [0.0, 2.0, 8.0]
    listed = Dimension.parse("a", {"values": ["x", None, [1, 2]]})
    assert [listed.value(share) for share in (0.0, 0.34, 0.9, 1.0)] == ["x", None, [1, 2], [1, 2]]


def test_whole_numbers_have_equal_shares():
    dimension = Dimension.parse("a", {"low": 1, "high": 4, "integer": True})
    values = [dimension.value(share) for share in np.linspace(0, 1, 4000, endpoint=False)]
    assert [values.count(value) for value in (1, 2, 3, 4)] == [1000] * 4
    assert all(isinstance(value, int) for value in values)
    log = Dimension.parse("a", {"low": 1, "high": 7, "integer": True, "log": True})
    assert {log.value(share) for share in np.linspace(0, 1, 1000)} == set(range(1, 8))
    assert log.value(1 / 3 - 1e-9) == 1, "1 to 8 has three doublings"


@given(st.floats(1e-6, 1e3), st.floats(1.001, 1e6), st.floats(0, 1), st.booleans())
def test_rounding_stays_in_the_interval(low, ratio, share, log):
    dimension = Dimension.parse("a", {"low": low, "high": low * ratio, "log": log})
    assert low <= dimension.value(share) <= low * ratio


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"low": 1.0}, "must have numbers low < high"),
        ({"low": 2.0, "high": 1.0}, "must have numbers low < high"),
        ({"low": 0.0, "high": 1.0, "log": True}, "must be > 0 where log=true"),
        ({"low": 0.5, "high": 2, "integer": True}, "must be whole numbers"),
        ({"low": 0.5, "high": 2, "log": "yes"}, "log and integer must be true or false"),
        ({"values": []}, "values must be a list"),
        ({"values": [1], "low": 1}, "excludes other keys"),
        ({"min": 1, "max": 2}, "min is none of low, high, log, integer, values"),
    ],
)
def test_invalid_dimensions_are_refused(entry, message):
    with pytest.raises(InputError, match=message):
        Space.parse("sgd", {"optimizer.lr": entry})


@pytest.mark.parametrize("option", ["trainer.epochs", "seed", "optimizer", "trainer.target.value"])
def test_the_budget_is_not_tuned(option):
    with pytest.raises(InputError, match="every trial has the same"):
        Space.parse("sgd", {option: {"low": 1, "high": 2}})


def _score(point):
    return abs(math.log10(point["optimizer.lr"]) + 2)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_depends_on_seed_and_past_trials_alone(name):
    if name == "optuna":
        pytest.importorskip("optuna")
    sampler = SAMPLERS[name](seed=3)
    known = []
    while len(known) < 12:
        points = sampler.place(SPACE, known, 4)
        assert points == SAMPLERS[name](seed=3).place(SPACE, known, 4)
        for point in points:
            assert set(point) == {dimension.option for dimension in SPACE.dimensions}
            assert 1e-4 <= point["optimizer.lr"] <= 1
            assert point["optimizer.period"] in (1, 2, 3, 4)
            assert point["optimizer/schedule"] in ("constant", "cosine")
            pruned = (2, 7.0) if len(known) % 3 == 1 else None
            bad = pruned or point["optimizer.lr"] > 0.5
            known.append(ScoredPoint(point, math.inf if bad else _score(point), pruned))
    assert SAMPLERS[name](seed=4).place(SPACE, known, 4) != points
    assert sampler.learns == (name == "optuna")


@pytest.mark.parametrize("name", ["sobol", "random"])
def test_the_first_trials_do_not_depend_on_how_many_follow(name):
    few, many = (SAMPLERS[name](0).place(SPACE, [], count) for count in (5, 8))
    assert many[:5] == few


def test_sobol_fills_every_part_of_the_space():
    points = SAMPLERS["sobol"](0).place(SPACE, [], 16)
    decades = [math.floor(4 * (math.log10(point["optimizer.lr"]) + 4)) for point in points]
    assert sorted(decades) == list(range(16)), "one in each sixteenth"


def test_overrides():
    point = {"optimizer.lr": 1e-5, "a": None, "b": True, "c": [1, 2], "optimizer/schedule": "cosine"}
    assert overrides_of(point) == [
        "optimizer.lr=1e-05",
        "a=null",
        "b=true",
        "c=[1,2]",
        "optimizer/schedule=cosine",
    ]
