"""Bands over seeds: their extent, their values, and the effect of a run that breaks down."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gnewton.report.curves import GRID, Curve, band, curve, curves
from gnewton.report.measures import worst_of
from gnewton.report.runs import read_run
from gnewton.report.setups import Setup
from tests.report.builders import falling, row, write_run

INF = math.inf


def _curve(x, y, broken=False) -> Curve:
    return Curve(np.array(x, dtype=float), np.array(y, dtype=float), 0, broken)


def test_a_curve_has_the_rows_that_have_a_value(tmp_path):
    rows = [
        row(1, 10, 1.0, train_loss=0.5),
        row(2, 20, 2.5),
        row(3, 30, 4.0, train_loss=math.inf),
        row(4, 40, 5.5, train_loss=0.25),
    ]
    line = curve(
        read_run(write_run(tmp_path, "run", {"seed": 7}, rows=rows, result="diverged")),
        "train_seconds",
        "train_loss",
    )
    assert (line.x.tolist(), line.y.tolist(), line.seed, line.broken) == ([1, 5.5], [0.5, 0.25], 7, True)


def test_runs_without_a_point_have_no_curve(tmp_path):
    runs = [
        read_run(write_run(tmp_path, "a", rows=falling([1.0, 0.5]))),
        read_run(write_run(tmp_path, "b", rows=[row(1, 10, 1.0)])),
        read_run(write_run(tmp_path, "c")),
    ]
    assert len(curves(Setup({}, runs), "epoch", "validation_loss")) == 1
    assert curves(Setup({}, runs), "epoch", "nothing") == []


def test_of_few_runs_the_band_is_the_range():
    edges = band([_curve([1, 2], y) for y in ([1, 5], [3, 4], [2, 9])], worst=INF)
    assert edges.x.tolist() == [1, 2]
    assert edges.median.tolist() == [2, 5]
    assert (edges.low.tolist(), edges.high.tolist()) == ([1, 4], [3, 9])


def test_of_five_runs_on_it_is_the_middle_half():
    values = np.array([[4.0, 1, 3, 2, 9, 7], [1, 1, 2, 3, 5, 8]]).T
    edges = band([_curve([1, 2], y) for y in values], worst=INF)
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75], axis=0)
    assert edges.low == pytest.approx(low)
    assert edges.median == pytest.approx(median)
    assert edges.high == pytest.approx(high)


def test_the_band_ends_with_the_shortest_run_that_did_not_break_down():
    members = [_curve([1, 2, 3], [3, 2, 1]), _curve([1, 2], [3, 2]), _curve([1], [3], broken=True)]
    edges = band(members, worst=INF)
    assert edges.x.tolist() == [1, 2]
    assert edges.median.tolist() == [3, 2]
    assert edges.high.tolist() == [3, INF]


def test_if_most_break_down_the_median_does():
    members = [_curve([1, 2], [3, 2]), *(_curve([1], [3], broken=True) for _ in range(2))]
    assert band(members, worst=INF).median.tolist() == [3, INF]
    assert band(members, worst=-INF).median.tolist() == [3, -INF]


def test_if_all_break_down_the_band_ends_with_the_first():
    members = [_curve([1, 2, 3], [3, 2, 9], broken=True), _curve([1, 2], [3, 4], broken=True)]
    assert band(members, worst=INF).x.tolist() == [1, 2]


def test_runs_that_share_no_place_have_no_band():
    assert band([_curve([1, 2], [1, 1]), _curve([3, 4], [1, 1])], worst=INF) is None


def test_places_that_differ_are_interpolated():
    """Two straight lines, given at different places: the band is their mean and their range."""
    first, second = [0.0, 1.0, 4.0], [0.5, 3.0]
    members = [_curve(first, [10 - x for x in first]), _curve(second, [20 - 3 * x for x in second])]
    edges = band(members, worst=INF)
    assert (edges.x[0], edges.x[-1], len(edges.x)) == (0.5, 3.0, GRID)
    assert edges.median == pytest.approx(15 - 2 * edges.x)
    assert edges.low == pytest.approx(10 - edges.x)
    assert edges.high == pytest.approx(20 - 3 * edges.x)


@given(
    st.lists(st.lists(st.floats(-100, 100), min_size=3, max_size=3), min_size=1, max_size=9),
    st.sampled_from([INF, -INF]),
    st.data(),
)
def test_bands_are_in_order_and_within_the_runs(values, worst, data):
    lengths = [data.draw(st.integers(1, 3)) for _ in values]
    members = [
        _curve([1, 2, 3][:length], own[:length], broken=length < 3)
        for own, length in zip(values, lengths, strict=True)
    ]
    edges = band(members, worst=worst)
    assert (edges.low <= edges.median).all()
    assert (edges.median <= edges.high).all()
    drawn = [y for member in members for y in member.y] + [worst]
    for place in (edges.low, edges.median, edges.high):
        assert (place >= min(drawn)).all()
        assert (place <= max(drawn)).all()


def test_the_worst_value_of_a_metric():
    assert [worst_of(name) for name in ("train_loss", "test_accuracy")] == [INF, -INF]
