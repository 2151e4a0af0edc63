"""Quantities derived from a summary, against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from gnewton.inspection.measurement import correlation, mass_by_distance, per_length

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
