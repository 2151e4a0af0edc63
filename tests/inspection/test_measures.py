"""What is read from a summary, against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from gnewton.inspection.measures import correlation, mass_by_distance, per_length, rate_sets

HESSIAN = np.array([[4.0, 2.0, -1.0], [2.0, 9.0, 0.0], [-1.0, 0.0, -1.0]])


def test_the_correlation_by_hand():
    expected = [[1, 2 / 6, -1 / 2], [2 / 6, 1, 0], [-1 / 2, 0, -1]]
    assert correlation(HESSIAN) == pytest.approx(np.array(expected), rel=1e-15)


def test_the_correlation_does_not_see_the_scale_of_groups():
    a = np.array([1e-8, 1.0, 1e5])
    assert correlation(HESSIAN * np.outer(a, a)) == pytest.approx(correlation(HESSIAN), rel=1e-12)


def test_a_group_at_rest_has_no_correlation():
    hessian = np.array([[0.0, 0.0], [0.0, 2.0]])
    assert correlation(hessian) == pytest.approx(np.diag([0.0, 1.0]))
    assert per_length(hessian, np.array([0.0, 2.0])).tolist() == [[0, 0], [0, 0.5]]


def test_the_mass_off_the_diagonal_by_hand():
    """Layers 0, 0, 2: the pair (0, 1) is in one layer, the others are two apart; Σ|H̄| = 14 + 2·3 = 20."""
    within, apart = mass_by_distance(HESSIAN, [0, 0, 2])
    assert (within.layers, within.entries, apart.layers, apart.entries) == (0, 2, 2, 4)
    assert within.share == pytest.approx(4 / 20)
    assert apart.share == pytest.approx(2 / 20)
    total = 3 + 2 * (1 / 3 + 1 / 2)  # of the scaled one
    assert within.scaled_share == pytest.approx(2 / 3 / total)
    assert apart.scaled_share == pytest.approx(1 / total)
    assert within.scaled_mean == pytest.approx(1 / 3)
    assert apart.scaled_mean == pytest.approx((1 / 2 + 1 / 2 + 0 + 0) / 4)


def test_a_single_group_has_nothing_off_the_diagonal():
    assert mass_by_distance(np.array([[2.0]]), [0]) == []


def test_rates_of_a_convex_quadratic():
    hessian, gradient = np.array([[2.0, 1.0], [1.0, 4.0]]), np.array([1.0, 1.0])
    cubic, newton, alone = rate_sets(gradient, hessian, np.zeros(2), 1.0)
    assert newton.values == pytest.approx([3 / 7, 1 / 7])
    assert newton.status == "quadratic"
    assert cubic.values == pytest.approx(newton.values)  # no third derivative: no cubic term
    assert alone.values == pytest.approx([1 / 2, 1 / 4])


def test_rates_of_a_saddle():
    """H̄⁻¹ḡ is shown all the same, and said to be none; the cubic term has a minimum."""
    hessian, gradient = np.diag([2.0, -1.0]), np.array([1.0, 1.0])
    cubic, newton, alone = rate_sets(gradient, hessian, np.ones(2), 1.0)
    assert newton.values == pytest.approx([0.5, -1.0])
    assert newton.status == "unbounded"
    assert cubic.status == "interior"
    assert np.isfinite(cubic.values).all()
    r = np.linalg.norm(cubic.values)
    assert (hessian + 0.5 * r * np.eye(2)) @ cubic.values == pytest.approx(gradient)
    assert alone.values[0] == 0.5
    assert np.isnan(alone.values[1])


def test_without_a_minimum_there_is_no_rate():
    cubic, _, _ = rate_sets(np.ones(2), np.diag([1.0, -1.0]), np.zeros(2), 1.0)
    assert cubic.status == "unbounded"
    assert np.isnan(cubic.values).all()
