"""Minimisation over rates ≥ 0: KKT conditions, proofs of global optimality, brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gnewton.cubic import CubicStatus, solve_cubic
from tests.cubic.families import FAMILIES, Instance, instance
from tests.cubic.test_certificate import energy_units
from tests.cubic.test_properties import grid, values
from tests.thorough import count

GLOBAL, LOCAL, UNBOUNDED = (
    CubicStatus.NONNEGATIVE_GLOBAL,
    CubicStatus.NONNEGATIVE_LOCAL,
    CubicStatus.UNBOUNDED,
)
CONVEX = ["convex", "low_rank", "all_zero_third", "stiff_force", "semidefinite_block", "rounding_singular"]


def kkt_residual(model: Instance, rates: np.ndarray) -> float:
    """‖min(η, ∇m)‖ / (‖ḡ‖ + ‖η‖) in energy units."""
    d = np.cbrt(np.abs(model.third))
    r = float(np.linalg.norm(d * rates))
    slope = model.hessian @ rates + 0.5 * model.damping * r * d * d * rates - model.gradient
    unit = energy_units(model, r)
    live = unit > 0
    assert (slope[~live] >= 0).all()
    z, force, pull = unit[live] * rates[live], slope[live] / unit[live], model.gradient[live] / unit[live]
    size = np.linalg.norm(z) + np.linalg.norm(pull)
    return float(np.linalg.norm(np.minimum(z, force)) / size) if size else 0.0


@pytest.mark.parametrize("kind", list(FAMILIES))
@settings(max_examples=count(2, 5), deadline=None, derandomize=True, database=None)
@given(batch=st.integers(0, 2**31))
def test_kkt_conditions_hold(kind: str, batch: int) -> None:
    for seed in range(batch, batch + 6):
        model = instance(kind, seed, 1 + seed % 8)
        solution = solve_cubic(*model.arguments, nonnegative=True)
        where = f"{kind} seed={seed} {solution}"
        if solution.status is UNBOUNDED:
            assert not solve_cubic(*model.arguments).bounded, where
            continue
        if kind == "clustered" and solution.status is CubicStatus.UNCERTIFIED:
            assert not np.asarray(solution.rates).any(), where  # flat to rounding: the descent gives up
            continue
        assert solution.status in (GLOBAL, LOCAL), where
        assert kind not in CONVEX or solution.status is GLOBAL, where
        assert (np.asarray(solution.rates) >= 0).all(), where
        assert solution.residual <= 1e-9, where
        assert kkt_residual(model, solution.rates) <= 1e-9, where
        assert solution.certified == (solution.status is GLOBAL), where
        assert solution.status is LOCAL or solution.curvature_margin >= -1e-8, where


@pytest.mark.parametrize(
    "kind", ["gaussian", "convex", "hard", "near_hard", "some_zero_third", "weak_coupling"]
)
@pytest.mark.parametrize("size", [1, 2])
def test_no_point_of_the_quadrant_is_lower(kind: str, size: int) -> None:
    for seed in range(15):
        model = instance(kind, seed, size)
        solution = solve_cubic(*model.arguments, nonnegative=True)
        if solution.status is UNBOUNDED:
            continue
        at = float(values(model, solution.rates[None, :])[0])
        free = np.asarray(solve_cubic(*model.arguments).rates)
        centers = [np.asarray(solution.rates), free, np.ones(size)]
        lowest = min(float(values(model, grid(center, (1.0,))).min()) for center in centers)
        assert at <= lowest + 1e-12 * abs(at), f"{kind} seed={seed} {solution}"


def test_a_proof_of_global_optimality_is_never_contradicted() -> None:
    """Many random feasible points and descents cannot beat what is called global."""
    rng = np.random.default_rng(0)
    proved = 0
    for seed in range(count(60, 150)):
        model = instance("gaussian", seed, 1 + seed % 5)
        solution = solve_cubic(*model.arguments, nonnegative=True)
        if solution.status is not GLOBAL:
            continue
        proved += 1
        at = float(values(model, solution.rates[None, :])[0])
        size = len(model.gradient)
        scale = max(float(np.linalg.norm(solution.rates)), 1e-3)
        points = (
            np.maximum(rng.standard_normal((4000, size)), 0) * scale * 10 ** rng.uniform(-2, 2, (4000, 1))
        )
        near = np.maximum(solution.rates + scale * 0.1 * rng.standard_normal((2000, size)), 0)
        assert at <= min(values(model, points).min(), values(model, near).min()) + 1e-12 * abs(at)
    assert proved > count(10, 20)


def test_an_indefinite_hessian_can_be_proved_global() -> None:
    h, g = np.array([[-1.0, 0.2], [0.2, 1.0]]), np.array([2.0, -3.0])
    solution = solve_cubic(h, g, np.ones(2), 2.0, nonnegative=True)
    assert solution.status is GLOBAL
    assert solution.rates == pytest.approx([2.0, 0.0], rel=1e-14)  # −η + η² = 2


def test_clipping_afterwards_is_not_the_same() -> None:
    h, g, third = np.array([[1.0, 0.9], [0.9, 1.0]]), np.array([1.0, 0.0]), np.zeros(2)
    free = np.asarray(solve_cubic(h, g, third, 0.0).rates)
    bound = np.asarray(solve_cubic(h, g, third, 0.0, nonnegative=True).rates)
    assert free == pytest.approx([1 / 0.19, -0.9 / 0.19], rel=1e-13)
    assert bound == pytest.approx([1.0, 0.0], rel=1e-14)


def test_rates_that_are_positive_anyway_are_kept() -> None:
    h, g = np.diag([2.0, -1.0]), np.array([1.0, 3.0])
    free = solve_cubic(h, g, np.ones(2), 1.0)
    bound = solve_cubic(h, g, np.ones(2), 1.0, nonnegative=True)
    assert bound.status is GLOBAL
    assert np.array_equal(bound.rates, free.rates)


@pytest.mark.parametrize(
    ("hessian", "gradient", "expected"),
    [
        ([[0.0]], [-1.0], [0.0]),
        ([[1.0, 2.0], [2.0, 1.0]], [1.0, 0.5], [1.0, 0.0]),  # indefinite, but copositive
        ([[1.0, -2.0], [-2.0, 1.0]], [-1.0, -1.0], None),
        ([[-1.0]], [-1.0], None),
        ([[0.0, 0.0], [0.0, 1.0]], [1.0, 1.0], None),  # falls linearly
        ([[1.0, -1.0], [-1.0, 1.0]], [1.0, 1.0], None),  # falls linearly along (1, 1)
    ],
)
def test_quadratics_without_a_minimiser_over_all_rates(
    hessian: list, gradient: list, expected: list | None
) -> None:
    h, g = np.array(hessian), np.array(gradient)
    assert not solve_cubic(h, g, None, 1.0).bounded
    solution = solve_cubic(h, g, None, 1.0, nonnegative=True)
    if expected is None:
        assert solution.status is UNBOUNDED
        assert not solution.rates.any()
    else:
        assert solution.bounded
        assert solution.rates == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("kind", ["convex", "gaussian"])
def test_three_hundred_groups(kind: str) -> None:
    model = instance(kind, 4, 300)
    solution = solve_cubic(*model.arguments, nonnegative=True)
    assert solution.bounded
    assert (solution.status is GLOBAL) or kind == "gaussian"
    assert kkt_residual(model, np.asarray(solution.rates)) <= 1e-12
    assert 0 < np.count_nonzero(solution.rates) < 300
