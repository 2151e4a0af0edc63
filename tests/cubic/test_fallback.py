"""The step for models without a lower bound: finite, inside its radius, never uphill."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from gnewton.cubic import fallback, solve_cubic
from gnewton.errors import InputError
from tests.cubic.families import FAMILIES, instance
from tests.cubic.test_properties import values


@pytest.mark.parametrize("kind", list(FAMILIES))
@pytest.mark.parametrize("nonnegative", [False, True])
def test_it_descends_within_the_radius(kind: str, nonnegative: bool) -> None:
    for seed in range(12):
        model = instance(kind, seed, 1 + seed % 6)
        for radius in (math.inf, 1.0, 1e-6):
            step = fallback(*model.arguments, radius=radius, nonnegative=nonnegative)
            assert isinstance(step, np.ndarray)
            assert np.isfinite(step).all()
            assert np.linalg.norm(step) <= radius * (1 + 1e-12)
            assert not nonnegative or (step >= 0).all()
            at = float(values(model, step[None, :])[0])
            uphill = (model.gradient > 0).any() if nonnegative else model.gradient.any()
            assert at < 0.0 if uphill else at <= 1e-30, f"{kind} seed={seed} radius={radius}"


def test_it_takes_the_absolute_curvature() -> None:
    step = fallback(np.diag([-4.0, 2.0]), np.array([1.0, 1.0]), None, 0.0, radius=math.inf)
    assert step == pytest.approx([0.25, 0.5], rel=1e-14)


def test_no_curvature_at_all_steps_along_the_gradient() -> None:
    step = fallback(np.zeros((1, 1)), np.array([-2.0]), None, 0.0, radius=0.25)
    assert step == pytest.approx([-0.25], rel=1e-14)


def test_the_last_rates_as_radius_keep_the_invariance_under_rescaling() -> None:
    model = instance("unbounded", 0, 5)
    a, last = 10 ** np.random.default_rng(0).uniform(-3, 3, 5), np.linspace(0.1, 0.5, 5)
    here = fallback(*model.arguments, radius=last)
    there = fallback(*model.rescaled(a).arguments, radius=last / a**2)
    assert there * a**2 == pytest.approx(here, rel=1e-8)
    energy = np.abs(np.diagonal(model.hessian))
    assert energy @ here**2 <= energy @ last**2 * (1 + 1e-12)


@pytest.mark.parametrize("radius", [0.0, np.zeros(2)])
def test_no_radius_no_step(radius: float | np.ndarray) -> None:
    assert not fallback(-np.eye(2), np.ones(2), None, 1.0, radius=radius).any()


def test_inputs_that_are_not_finite_give_no_step() -> None:
    assert not fallback(np.full((1, 1), np.nan), np.ones(1), None, 1.0, radius=1.0).any()


@pytest.mark.parametrize("radius", [-1.0, math.nan, np.ones(3), np.array([1.0, np.inf])])
def test_a_bad_radius_is_an_error(radius: float | np.ndarray) -> None:
    with pytest.raises(InputError, match="radius"):
        fallback(np.eye(2), np.ones(2), None, 1.0, radius=radius)


def test_tensors_in_tensors_out() -> None:
    step = fallback(-torch.eye(2), torch.ones(2), None, 1.0, radius=torch.full((2,), 0.5))
    assert isinstance(step, torch.Tensor)
    assert step.dtype is torch.float64
    assert step.tolist() == pytest.approx([0.5, 0.5])


def test_it_is_the_minimiser_where_the_model_is_well_conditioned() -> None:
    model = instance("all_zero_third", 1, 3)
    expected = solve_cubic(*model.arguments).rates
    assert fallback(*model.arguments, radius=math.inf) == pytest.approx(expected, rel=1e-12)
