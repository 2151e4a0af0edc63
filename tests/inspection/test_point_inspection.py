"""The rates that a summary implies, against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from gnewton.inspection.point_inspection import rate_sets


def test_rates_of_a_convex_quadratic():
    hessian, gradient = np.array([[2.0, 1.0], [1.0, 4.0]]), np.array([1.0, 1.0])
    cubic, newton, alone = rate_sets(gradient, hessian, np.zeros(2), 1.0)
    assert newton.values == pytest.approx([3 / 7, 1 / 7])
    assert newton.status == "quadratic"
    assert cubic.values == pytest.approx(newton.values)  # no third derivative: no cubic term
    assert alone.values == pytest.approx([1 / 2, 1 / 4])


def test_rates_of_a_saddle():
    """H̄⁻¹ḡ is reported although it is no minimum; the cubic model has one."""
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
