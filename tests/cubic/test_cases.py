"""Named models whose answer is known in closed form, and the ones that break simpler solvers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import brentq

from gnewton.cubic import CubicStatus, solve_cubic
from tests.thorough import count

INTERIOR, HARD, QUADRATIC = CubicStatus.INTERIOR, CubicStatus.HARD_CASE, CubicStatus.QUADRATIC
UNBOUNDED, INVALID = CubicStatus.UNBOUNDED, CubicStatus.INVALID_INPUT


@pytest.mark.parametrize("h", [-3.0, -1e-20, 0.0, 2.0, 1e12])
@pytest.mark.parametrize("g", [-1e15, -0.7, 1e-25, 1.0])
@pytest.mark.parametrize("third", [-4.0, 1e-9, 1e20])
def test_one_group_in_closed_form(h: float, g: float, third: float) -> None:
    damping = 3.0
    c = 0.5 * damping * abs(third)  # h η + c |η| η = g
    root = math.hypot(h, 2.0 * math.sqrt(c) * math.sqrt(abs(g)))
    size = 2.0 * abs(g) / (h + root) if h > 0 else (root - h) / (2.0 * c)
    solution = solve_cubic(np.array([[h]]), np.array([g]), np.array([third]), damping)
    assert solution.status is INTERIOR
    assert solution.rates[0] == pytest.approx(math.copysign(size, g), rel=1e-14)
    assert solution.radius == pytest.approx(abs(third) ** (1 / 3) * size, rel=1e-14)


def test_one_group_at_a_maximum_steps_along_positive_rates() -> None:
    solution = solve_cubic(np.array([[-3.0]]), np.zeros(1), np.array([2.0]), 4.0)
    assert solution.status is HARD
    assert solution.rates == pytest.approx([3.0 / 4.0], rel=1e-15)
    assert solution.curvature_margin == pytest.approx(0.0, abs=1e-15)


def test_textbook_hard_case() -> None:
    solution = solve_cubic(np.diag([-1.0, 1.0]), np.array([0.0, 1.0]), np.ones(2), 2.0)
    assert solution.status is HARD
    assert solution.rates == pytest.approx([math.sqrt(0.75), 0.5], rel=1e-15)
    assert solution.radius == pytest.approx(1.0, rel=1e-15)


@pytest.mark.parametrize("leak", [1e-2, -1e-5, 1e-9, -1e-13, 1e-30, -1e-200])
def test_near_hard_case_keeps_the_sign_and_the_radius(leak: float) -> None:
    solution = solve_cubic(np.diag([-1.0, 1.0]), np.array([leak, 1.0]), np.ones(2), 2.0)

    def excess(log_offset: float) -> float:
        offset = math.exp(log_offset)
        return math.hypot(leak / offset, 1.0 / (2.0 + offset)) - 1.0 - offset

    offset = math.exp(brentq(excess, math.log(abs(leak)) - 3.0, 3.0, xtol=1e-15, rtol=1e-15))
    assert solution.radius == pytest.approx(1.0 + offset, rel=1e-14)
    if abs(leak) >= 1e-13:  # below, the two signs differ by less than rounding
        assert math.copysign(1.0, solution.rates[0]) == math.copysign(1.0, leak)
    assert abs(solution.rates[0]) == pytest.approx(abs(leak) / offset, rel=1e-12)


def test_no_hard_case_where_the_gradient_alone_reaches_the_radius() -> None:
    solution = solve_cubic(np.diag([-1.0, 1.0]), np.array([0.0, 100.0]), np.ones(2), 2.0)
    assert solution.status is INTERIOR
    assert solution.rates[0] == 0.0
    r = (math.sqrt(401.0) - 1.0) / 2.0  # (1 + r) r = 100
    assert solution.rates[1] == pytest.approx(r, rel=1e-14)


def test_lowest_curvature_of_multiplicity_two() -> None:
    solution = solve_cubic(-np.eye(3), np.zeros(3), np.ones(3), 2.0)
    assert solution.status is HARD
    assert np.linalg.norm(solution.rates) == pytest.approx(1.0, rel=1e-15)
    assert solution.certified


def test_eigenvalue_that_a_plain_eigensolver_loses() -> None:
    """κ_min = −1.25e-16 beside an entry 1e16: eigh of D⁻¹HD⁻¹ knows it to an absolute error of about one."""
    h, d = np.array([[1.0, 0.5], [0.5, -1.0]]), np.array([1e-8, 1e8])
    solution = solve_cubic(h, np.zeros(2), d**3, 2.0)
    assert solution.status is HARD
    assert solution.radius == pytest.approx(1.25e-16, rel=1e-12)
    assert solution.certified


def test_zero_third_and_indefinite_hessian() -> None:
    """A vanishing third derivative with an indefinite Hessian that is bounded all the same."""
    h, g = np.array([[2.0, 3.0], [3.0, 1.0]]), np.array([1.0, 1.0])
    solution = solve_cubic(h, g, np.array([0.0, 1.0]), 2.0)
    assert solution.status is INTERIOR
    schur, force = 1.0 - 9.0 / 2.0, 1.0 - 3.0 / 2.0
    eta = -(-schur + math.sqrt(schur**2 + 4.0 * abs(force))) / 2.0
    assert solution.rates == pytest.approx([(1.0 - 3.0 * eta) / 2.0, eta], rel=1e-14)


def test_hugely_negative_schur_complement() -> None:
    solution = solve_cubic(np.array([[1e-12, 1.0], [1.0, 1.0]]), np.zeros(2), np.array([0.0, 1.0]), 2.0)
    assert solution.status is HARD
    assert solution.radius == pytest.approx(1e12 - 1.0, rel=1e-12)


def test_no_curvature_at_all() -> None:
    g, third = np.array([3.0, -4.0]), np.array([8.0, 1.0])
    solution = solve_cubic(np.zeros((2, 2)), g, third, 2.0)
    b = g / np.array([2.0, 1.0])
    assert solution.rates == pytest.approx(b / np.array([2.0, 1.0]) / math.sqrt(np.linalg.norm(b)), rel=1e-14)


@pytest.mark.parametrize(
    ("hessian", "gradient", "third", "damping", "status"),
    [
        ([[0.0]], [0.0], [0.0], 1.0, QUADRATIC),
        ([[0.0]], [1.0], [0.0], 1.0, UNBOUNDED),
        ([[0.0]], [0.0], [1.0], 1.0, INTERIOR),
        ([[-1.0]], [1.0], [1.0], 0.0, UNBOUNDED),
        ([[-1.0]], [1.0], [0.0], 1.0, UNBOUNDED),
        ([[2.0]], [1.0], None, 1.0, QUADRATIC),
        ([[1.0, 1.0], [1.0, 1.0]], [1.0, 1.0], None, 0.0, QUADRATIC),
        ([[1.0, 1.0], [1.0, 1.0]], [1.0, 2.0], None, 0.0, UNBOUNDED),
        ([[1.0, 2.0], [2.0, 1.0]], [0.0, 0.0], None, 0.0, UNBOUNDED),
        ([[0.0, 1.0], [1.0, 5.0]], [0.0, 1.0], [0.0, 1.0], 1.0, UNBOUNDED),
        ([[0.0, 0.0], [0.0, 5.0]], [0.0, 1.0], [0.0, 1.0], 1.0, INTERIOR),
        ([[0.0, 0.0], [0.0, 5.0]], [1e-30, 1.0], [0.0, 1.0], 1.0, UNBOUNDED),
        ([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, -1.0]], [2.0, 2.0, 0.0], [0.0, 0.0, 1.0], 1.0, HARD),
        (
            [[1.0, 1.0, 1.0], [1.0, 1.0, 0.0], [1.0, 0.0, -1.0]],
            [2.0, 2.0, 0.0],
            [0.0, 0.0, 1.0],
            1.0,
            UNBOUNDED,
        ),
        ([[1e-300]], [1e300], None, 0.0, INVALID),
        ([[math.nan]], [1.0], None, 0.0, INVALID),
        ([[1.0]], [math.inf], [1.0], 0.0, INVALID),
        ([[1.0]], [1.0], [math.nan], 1.0, INVALID),
    ],
)
def test_status(
    hessian: list, gradient: list, third: list | None, damping: float, status: CubicStatus
) -> None:
    solution = solve_cubic(
        np.array(hessian), np.array(gradient), None if third is None else np.array(third), damping
    )
    assert solution.status is status
    assert np.isfinite(solution.rates).all()
    assert solution.bounded == (status not in (UNBOUNDED, INVALID))
    assert solution.certified == solution.bounded
    if not solution.bounded:
        assert not solution.rates.any()


def test_flat_direction_takes_no_rate() -> None:
    """H̄ = (1,1)(1,1)ᵀ without cubic term: η_1 + η_2 = 1 is optimal; the shortest is returned."""
    solution = solve_cubic(np.ones((2, 2)), np.ones(2), None, 0.0)
    assert solution.rates == pytest.approx([0.5, 0.5], rel=1e-13)


def test_dead_group_between_living_ones() -> None:
    h = np.array([[-1.0, 0.0, 0.5], [0.0, 0.0, 0.0], [0.5, 0.0, 2.0]])
    g, third = np.array([1.0, 0.0, -1.0]), np.array([1.0, 0.0, 2.0])
    solution, keep = solve_cubic(h, g, third, 1.0), [0, 2]
    alone = solve_cubic(h[np.ix_(keep, keep)], g[keep], third[keep], 1.0)
    assert solution.rates[1] == 0.0
    assert solution.rates[keep] == pytest.approx(alone.rates, rel=1e-13)


def test_limits_of_the_damping() -> None:
    """λ → 0 gives Newton's rates where H̄ ≻ 0, λ → ∞ gives none."""
    h, g = np.array([[2.0, 0.5], [0.5, 1.0]]), np.array([1.0, -2.0])
    weak = solve_cubic(h, g, np.ones(2), 1e-14).rates
    assert weak == pytest.approx(np.linalg.solve(h, g), rel=1e-12)
    strong = solve_cubic(h, g, np.ones(2), 1e14).rates
    assert np.abs(strong).max() < 1e-6


@pytest.mark.parametrize("nonnegative", [False, True])
def test_no_exception_for_any_finite_input(nonnegative: bool) -> None:
    rng = np.random.default_rng(7)
    solved = 0
    with np.errstate(over="ignore"):
        for _ in range(count(100, 300)):
            size = int(rng.integers(1, 5))
            h = np.nan_to_num(
                np.triu(rng.standard_normal((size, size)) * 10 ** rng.uniform(-320, 308, (size, size)))
            )
            g = np.nan_to_num(rng.standard_normal(size) * 10 ** rng.uniform(-320, 308, size))
            t = np.nan_to_num(rng.standard_normal(size) * 10 ** rng.uniform(-320, 308, size))
            solution = solve_cubic(
                h + np.triu(h, 1).T, g, t, 10 ** rng.uniform(-300, 300), nonnegative=nonnegative
            )
            assert np.isfinite(solution.rates).all()
            assert solution.bounded or not solution.rates.any()
            solved += solution.bounded
    assert solved > count(33, 100)
