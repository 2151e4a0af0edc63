"""The quick ways for small models: each step against the plain one it stands for."""

from __future__ import annotations

import numpy as np
import pytest

from gnewton.cubic import CubicStatus, solve_cubic
from gnewton.cubic.model import EPSILON, scaled
from gnewton.cubic.solve import all_finite
from gnewton.cubic.spectrum import plain_spectrum
from gnewton.cubic.tridiagonal import _Reduction, quick_candidate
from gnewton.cubic.unconstrained import _from, single_candidate
from tests.cubic.families import instance


@pytest.mark.parametrize("value", [0.0, 1.0, 1e200, np.finfo(np.float64).max, 5e-324])
def test_finite_however_large(value: float) -> None:
    assert all_finite(np.full((3, 3), value))
    assert all_finite(np.full((6, 6), -value)[::2, ::2])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("others", [0.0, 1e200])
def test_one_entry_that_is_not_finite(value: float, others: float) -> None:
    array = np.full((4, 4), others)
    array[2, 1] = value
    assert not all_finite(array)
    assert not all_finite(array[1:3, :2])


@pytest.mark.parametrize("exponent", [0, 40, 300, -300])
@pytest.mark.parametrize("bare", [0, 1, 5, 6])
def test_scaling_is_by_powers_of_two(exponent: int, bare: int) -> None:
    model = instance("gaussian", bare, 6)
    unit = 2.0**exponent
    third = np.where(np.arange(6) < bare, 0.0, model.third)
    problem = scaled(unit * model.hessian, unit * model.gradient, unit * third, model.damping)
    # H = 2^-(e_s + e_t) / energy and g = 2^-e_s / energy in variables x = 2^e_s η, with one unit of energy
    grown = problem.hessian * 2.0 ** (problem.exponents[:, None] + problem.exponents[None, :])
    energy = grown[0, 0] / model.hessian[0, 0]
    assert np.frexp(energy)[0] == 0.5
    assert np.array_equal(grown, energy * model.hessian)
    assert np.array_equal(problem.gradient * 2.0**problem.exponents, energy * model.gradient)
    assert np.array_equal(problem.weights == 0.0, third == 0.0)
    assert ((problem.weights[bare:] >= 1.0) & (problem.weights[bare:] < 4.0)).all()


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("size", [2, 3, 20, 64, 65, 90])
def test_the_lowest_eigenpair_and_the_turns(size: int, seed: int) -> None:
    problem = scaled(*instance("gaussian", seed, size).arguments)
    basis, plain = _Reduction(problem), plain_spectrum(problem)
    pair = basis.lowest()
    assert pair is not None
    value, vector = pair
    assert abs(value - plain.alpha[0]) <= plain.noise
    up = np.sqrt(problem.weights) * basis.up(vector)
    assert abs(up @ plain.left[:, 0]) == pytest.approx(1.0, abs=1e-9)
    assert basis.down(np.sqrt(problem.weights) * up) == pytest.approx(vector, abs=1e-13)
    assert basis.norm >= np.abs(plain.alpha).max() - plain.noise


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("size", [2, 7, 50, 80])
def test_the_margin_is_the_smallest_eigenvalue(size: int, seed: int) -> None:
    problem = scaled(*instance("gaussian", seed, size).arguments)
    candidate = quick_candidate(problem)
    if candidate is None:
        pytest.skip("left to a more careful way")
    slow, _ = _from(problem, plain_spectrum(problem))
    assert candidate.margin == pytest.approx(slow.margin, rel=1e-8, abs=1e-12)
    assert candidate.x == pytest.approx(slow.x, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("seed", range(100))
def test_one_group_by_formula_and_by_the_secular_equation(seed: int) -> None:
    rng = np.random.default_rng(seed)
    h, g, t = rng.standard_normal(3) * 10.0 ** rng.uniform(-12, 12, 3)
    problem = scaled(np.array([[h]]), np.array([g]), np.array([t]), 1.0)
    candidate = single_candidate(problem)
    assert candidate is not None
    slow, _ = _from(problem, plain_spectrum(problem))
    assert candidate.status is slow.status is CubicStatus.INTERIOR
    assert candidate.x == pytest.approx(slow.x, rel=8 * EPSILON)
    assert candidate.margin == pytest.approx(slow.margin, rel=1e-9, abs=1e-15)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_one_group_without_gradient(sign: float) -> None:
    problem = scaled(np.array([[sign]]), np.zeros(1), np.ones(1), 1.0)
    assert single_candidate(problem) is None
    solution = solve_cubic(np.array([[sign]]), np.zeros(1), np.ones(1), 1.0)
    assert solution.status is (CubicStatus.INTERIOR if sign > 0.0 else CubicStatus.HARD_CASE)
    assert solution.rates == pytest.approx([0.0 if sign > 0.0 else 2.0])
