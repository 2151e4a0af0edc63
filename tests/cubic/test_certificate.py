"""Thousands of random models of every kind; each answer is checked by arithmetic of the test's own.

``GNEWTON_THOROUGH=1`` tries over 20,000.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gnewton.cubic import CubicSolution, CubicStatus, solve_cubic
from tests.cubic.families import FAMILIES, Instance, instance
from tests.thorough import count

EXAMPLES = count(2, 8)
BATCH = 120
LARGEST = 9

NEVER = {CubicStatus.INVALID_INPUT, CubicStatus.UNCERTIFIED}
BOUNDED_KINDS = set(FAMILIES) - {"unbounded", "small_integers", "some_zero_third", "nearly_flat_block"}


def test_the_property_covers_thousands_of_instances() -> None:
    assert len(FAMILIES) * EXAMPLES * BATCH >= count(5_000, 20_000)


def energy_units(model: Instance, r: float) -> np.ndarray:
    d = np.cbrt(np.abs(model.third))
    return np.sqrt(np.abs(np.diagonal(model.hessian)) + 0.5 * model.damping * r * d * d)


def residual(model: Instance, rates: np.ndarray) -> float:
    """‖M(r)η − ḡ‖ / (‖ḡ‖ + ‖η‖) in energy units, in extended precision where the platform has it."""
    h, g, eta = (np.asarray(a, dtype=np.longdouble) for a in (model.hessian, model.gradient, rates))
    d = np.cbrt(np.abs(model.third)).astype(np.longdouble)
    r = np.sqrt(((d * eta) ** 2).sum())
    slope = h @ eta + np.longdouble(model.damping) / 2 * r * d * d * eta - g
    unit = energy_units(model, float(r))
    live = unit > 0
    assert not slope[~live].any()
    size = np.linalg.norm((g[live] / unit[live]).astype(float)) + np.linalg.norm((unit * eta).astype(float))
    wrong = np.linalg.norm((slope[live] / unit[live]).astype(float))
    return float(wrong / size) if wrong else 0.0


def lowest_scaled_curvature(model: Instance, rates: np.ndarray) -> float:
    """Smallest eigenvalue of M(r(1 + 1e-8)) in energy units: negative only if M(r) is indefinite."""
    d = np.cbrt(np.abs(model.third))
    r = float(np.linalg.norm(d * rates))
    unit = energy_units(model, r)
    unit = np.where(unit > 0, unit, 1.0)
    raised = model.hessian + np.diag(0.5 * model.damping * r * d * d * (1.0 + 1e-8))
    return float(np.linalg.eigvalsh(raised / unit[:, None] / unit[None, :])[0])


def check(model: Instance, solution: CubicSolution, kind: str, seed: int) -> None:
    where = f"{kind} seed={seed} S={len(model.gradient)} {solution}"
    rates = np.asarray(solution.rates)
    assert np.isfinite(rates).all(), where
    assert solution.status not in NEVER, where
    if not solution.bounded:
        assert solution.status is CubicStatus.UNBOUNDED, where
        assert not rates.any(), where
        assert kind not in BOUNDED_KINDS, where
        return
    assert kind != "unbounded", where
    assert solution.certified, where
    d = np.cbrt(np.abs(model.third))
    assert solution.radius == pytest.approx(np.linalg.norm(d * rates), rel=1e-12, abs=0), where
    assert residual(model, rates) <= 1e-9, where
    assert residual(model, rates) == pytest.approx(solution.residual, rel=1e-3, abs=1e-14), where
    assert lowest_scaled_curvature(model, rates) >= -1e-13 * len(rates), where
    cubic = model.damping > 0 and bool(model.third.any())
    assert (solution.status is CubicStatus.QUADRATIC) == (not cubic), where


@pytest.mark.parametrize("kind", list(FAMILIES))
@settings(max_examples=EXAMPLES, deadline=None, derandomize=True, database=None)
@given(batch=st.integers(0, 2**31))
def test_every_answer_is_a_certified_global_minimiser(kind: str, batch: int) -> None:
    for offset in range(BATCH):
        seed = batch + offset
        model = instance(kind, seed, 1 + offset % LARGEST)
        check(model, solve_cubic(*model.arguments), kind, seed)


@pytest.mark.parametrize("kind", list(FAMILIES))
@pytest.mark.parametrize("size", [40, 150])
def test_larger_models(kind: str, size: int) -> None:
    model = instance(kind, 1, size)
    check(model, solve_cubic(*model.arguments), kind, 1)


@pytest.mark.parametrize("kind", ["gaussian", "hard", "graded", "some_zero_third"])
def test_a_thousand_groups(kind: str) -> None:
    model = instance(kind, 2, 1000)
    solution = solve_cubic(*model.arguments)
    check(model, solution, kind, 2)
    assert (solution.status is CubicStatus.HARD_CASE) == (kind == "hard")
