"""Inputs in every kind of array, and the types of the results."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from gnewton.cubic import CubicSolution, CubicStatus, fallback, solve_cubic
from gnewton.errors import InputError
from tests.cubic.families import instance

MODEL = instance("gaussian", 1, 6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_tensors_of_any_dtype(dtype: torch.dtype) -> None:
    h, g, t = (torch.tensor(a).to(dtype) for a in (MODEL.hessian, MODEL.gradient, MODEL.third))
    solution = solve_cubic(h.requires_grad_(), g, t, MODEL.damping)
    exact = solve_cubic(*(a.detach().double().numpy() for a in (h, g, t)), MODEL.damping)
    assert isinstance(solution.rates, torch.Tensor)
    assert solution.rates.dtype is torch.float64
    assert not solution.rates.requires_grad
    assert np.array_equal(solution.rates.numpy(), exact.rates)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_tensors_on_an_accelerator() -> None:
    h, g, t = (torch.tensor(a).cuda() for a in (MODEL.hessian, MODEL.gradient, MODEL.third))
    solution = solve_cubic(h, g, t, MODEL.damping)
    assert isinstance(solution.rates, torch.Tensor)
    assert solution.rates.device.type == "cpu"
    assert np.array_equal(solution.rates.numpy(), solve_cubic(*MODEL.arguments).rates)


def test_arrays_lists_and_views() -> None:
    exact = solve_cubic(*MODEL.arguments)
    wide = np.zeros((12, 12))
    wide[::2, ::2] = MODEL.hessian
    assert isinstance(exact.rates, np.ndarray)
    assert exact.rates.dtype == np.float64
    strided = solve_cubic(wide[::2, ::2], MODEL.gradient[::-1].copy()[::-1], MODEL.third, MODEL.damping)
    assert np.array_equal(strided.rates, exact.rates)


def test_inputs_are_not_modified() -> None:
    copies = [a.copy() for a in (MODEL.hessian, MODEL.gradient, MODEL.third)]
    for nonnegative in (False, True):
        solve_cubic(*MODEL.arguments, nonnegative=nonnegative)
    fallback(*MODEL.arguments, radius=1.0)
    for copy, original in zip(copies, (MODEL.hessian, MODEL.gradient, MODEL.third), strict=True):
        assert np.array_equal(copy, original)


@pytest.mark.parametrize("third", [None, np.zeros(6)])
def test_no_third_is_a_zero_third(third: np.ndarray | None) -> None:
    h = MODEL.hessian @ MODEL.hessian
    solution = solve_cubic(h, MODEL.gradient, third, 1.0)
    assert solution.status is CubicStatus.QUADRATIC
    assert h @ solution.rates == pytest.approx(MODEL.gradient, rel=1e-9)


def test_the_sign_of_the_third_does_not_matter() -> None:
    flipped = solve_cubic(MODEL.hessian, MODEL.gradient, -MODEL.third, MODEL.damping)
    assert np.array_equal(flipped.rates, solve_cubic(*MODEL.arguments).rates)


@pytest.mark.parametrize(
    ("hessian", "gradient", "third", "match"),
    [
        (np.zeros((0, 0)), np.zeros(0), None, "gradient has shape"),
        (np.eye(2), np.ones((2, 1)), None, "gradient has shape"),
        (np.eye(3), np.ones(2), None, "hessian has shape"),
        (np.ones(2), np.ones(2), None, "hessian has shape"),
        (np.eye(2), np.ones(2), np.ones(3), "third has shape"),
        (np.array([[1.0, 2.0], [2.1, 1.0]]), np.ones(2), None, "symmetric"),
    ],
)
def test_shapes_and_asymmetry_are_errors(
    hessian: np.ndarray, gradient: np.ndarray, third: np.ndarray | None, match: str
) -> None:
    with pytest.raises(InputError, match=match) as caught:
        solve_cubic(hessian, gradient, third, 1.0)
    assert isinstance(caught.value, ValueError)
    with pytest.raises(InputError, match=match):
        fallback(hessian, gradient, third, 1.0, radius=1.0)


@pytest.mark.parametrize("damping", [-1e-300, math.nan, math.inf])
def test_a_bad_damping_is_an_error(damping: float) -> None:
    with pytest.raises(InputError, match="damping"):
        solve_cubic(*MODEL.arguments[:3], damping)


def test_asymmetry_of_rounding_is_averaged() -> None:
    skew = 1e-9 * np.triu(np.ones((6, 6)), 1)
    exact = solve_cubic(*MODEL.arguments).rates
    tilted = solve_cubic(MODEL.hessian + skew - skew.T, *MODEL.arguments[1:]).rates
    assert tilted == pytest.approx(exact, rel=1e-12)


def test_a_status_reads_as_its_value() -> None:
    assert str(CubicStatus.HARD_CASE) == CubicStatus.HARD_CASE.value == "hard_case"
    assert CubicStatus("unbounded") is CubicStatus.UNBOUNDED


@pytest.mark.parametrize(
    ("status", "residual", "margin", "bounded", "certified"),
    [
        ("interior", 1e-10, 0.0, True, True),
        ("interior", 1e-8, 0.0, True, False),
        ("hard_case", 0.0, -1e-7, True, False),
        ("nonnegative_global", 0.0, -1e-9, True, True),
        ("nonnegative_local", 0.0, 1.0, True, False),
        ("uncertified", 0.0, 1.0, False, False),
        ("unbounded", 0.0, 1.0, False, False),
        ("invalid_input", 0.0, 1.0, False, False),
    ],
)
def test_what_a_status_promises(
    status: str, residual: float, margin: float, bounded: bool, certified: bool
) -> None:
    solution = CubicSolution(np.zeros(1), 0.0, CubicStatus(status), residual, margin, 1)
    assert (solution.bounded, solution.certified) == (bounded, certified)
