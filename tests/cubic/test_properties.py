"""Brute force over a grid, and invariance under rescaling."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gnewton.cubic import CubicStatus, solve_cubic
from tests.cubic.families import Instance, instance
from tests.thorough import count

GRID_KINDS = [
    "gaussian", "convex", "low_rank", "hard", "near_hard", "some_zero_third", "all_zero_third", "no_gradient",
    "clustered", "weak_coupling", "sparse",
]  # fmt: skip


def values(model: Instance, points: np.ndarray) -> np.ndarray:
    """The model at many points, shape (N, S)."""
    d = np.cbrt(np.abs(model.third))
    bend = 0.5 * np.einsum("ns,st,nt->n", points, model.hessian, points)
    return bend - points @ model.gradient + model.damping / 6 * np.linalg.norm(points * d, axis=1) ** 3


def grid(center: np.ndarray, signs: tuple[float, ...]) -> np.ndarray:
    """Points at 0 and at 1e-4 … 1e4 times the sizes of ``center`` in each coordinate."""
    sizes = np.abs(center)
    sizes = np.where(sizes > 0, sizes, sizes.max() or 1.0)
    steps = np.concatenate([[0.0], *(sign * np.geomspace(1e-4, 1e4, 161) for sign in signs)])
    axes = np.meshgrid(*(size * steps for size in sizes), indexing="ij")
    return np.stack([axis.ravel() for axis in axes], axis=1)


@pytest.mark.parametrize("kind", GRID_KINDS)
@pytest.mark.parametrize("size", [1, 2])
def test_no_point_of_a_grid_is_lower(kind: str, size: int) -> None:
    for seed in range(6):
        model = instance(kind, seed, size)
        solution = solve_cubic(*model.arguments)
        if solution.status is CubicStatus.UNBOUNDED:
            assert kind == "some_zero_third"
            continue
        at = float(values(model, solution.rates[None, :])[0])
        others = values(model, grid(solution.rates, (1.0, -1.0)))
        assert at <= others.min() + 1e-12 * abs(at)


@pytest.mark.parametrize(
    "kind", ["gaussian", "convex", "graded", "some_zero_third", "all_zero_third", "hard"]
)
@settings(max_examples=count(10, 25), deadline=None, derandomize=True, database=None)
@given(seed=st.integers(0, 2**31), size=st.integers(1, 12), whole_octaves=st.booleans())
def test_rescaling_the_groups_leaves_the_step_unchanged(
    kind: str, seed: int, size: int, whole_octaves: bool
) -> None:
    model = instance(kind, seed, size)
    rng = np.random.default_rng(seed)
    a = 2.0 ** rng.integers(-10, 11, size) if whole_octaves else 10 ** rng.uniform(-3, 3, size)
    here, there = solve_cubic(*model.arguments), solve_cubic(*model.rescaled(a).arguments)
    assert here.status is there.status
    assert there.radius == pytest.approx(here.radius, rel=1e-10)
    tolerance = 1e-12 if whole_octaves else 1e-5
    unit = np.sqrt(
        np.abs(np.diagonal(model.hessian)) + model.damping * here.radius * np.cbrt(model.third) ** 2
    )
    moved = np.linalg.norm(unit * (there.rates * a**2 - here.rates))
    assert moved <= tolerance * np.linalg.norm(unit * here.rates)


@settings(max_examples=count(10, 25), deadline=None, derandomize=True, database=None)
@given(seed=st.integers(0, 2**31), size=st.integers(1, 12))
def test_non_negative_rates_are_invariant_too(seed: int, size: int) -> None:
    model = instance("convex", seed, size)
    a = 10 ** np.random.default_rng(seed).uniform(-3, 3, size)
    here = solve_cubic(*model.arguments, nonnegative=True)
    there = solve_cubic(*model.rescaled(a).arguments, nonnegative=True)
    assert here.status is there.status is CubicStatus.NONNEGATIVE_GLOBAL
    assert there.rates * a**2 == pytest.approx(
        here.rates, rel=1e-7, abs=1e-10 * np.abs(here.rates).max(initial=0)
    )


@settings(max_examples=count(10, 25), deadline=None, derandomize=True, database=None)
@given(seed=st.integers(0, 2**31), size=st.integers(2, 12))
def test_the_order_of_the_groups_does_not_matter(seed: int, size: int) -> None:
    model = instance("gaussian", seed, size)
    p = np.random.default_rng(seed).permutation(size)
    shuffled = solve_cubic(model.hessian[np.ix_(p, p)], model.gradient[p], model.third[p], model.damping)
    assert shuffled.rates == pytest.approx(np.asarray(solve_cubic(*model.arguments).rates)[p], rel=1e-6)
