"""A step for models without a minimiser, and for solves without a certified one."""

from __future__ import annotations

import math

import numpy as np
import torch

from gnewton.cubic.model import curvature_units
from gnewton.cubic.solution import Array
from gnewton.cubic.solve import checked, solve_cubic
from gnewton.errors import InputError

_FLOOR = 1e-2  # least eigenvalue of the positive definite Hessian, in units of the largest


def fallback(
    hessian: Array,
    gradient: Array,
    third: Array | None,
    damping: float,
    *,
    radius: float | Array,
    nonnegative: bool = False,
) -> Array:
    """A finite descent step for a model without a lower bound.

    1. In units in which every ``|H̄_ss|`` is one, replace the eigenvalues of the Hessian by their absolute
       values, at least a hundredth of the largest: H̄⁺ ⪰ H̄, positive definite.
    2. Take the minimiser η of the model with H̄⁺, cubic term included.
    3. Shorten it to the radius: ``η·min(1, radius / ‖η‖)``.

    It never raises the model m: with m⁺ the convex model of step 2 and 0 ≤ t ≤ 1,
    ``m(tη) ≤ m⁺(tη) ≤ t·m⁺(η) ≤ 0 = m(0)``, and less than zero if the gradient is not zero.

    Args:
        hessian: H̄, shape (S, S), as in :func:`~gnewton.cubic.solve_cubic`, like the next three.
        gradient: ḡ, shape (S,).
        third: D3, shape (S,), or None.
        damping: λ ≥ 0.
        radius: the largest length of the step. A number bounds the Euclidean norm of the rates
            (``math.inf``: no bound; 0: no step). The last accepted rates, shape (S,), bound it by
            their own length in the norm ``(Σ |H̄_ss| η_s²)^½``, which does not change when groups are
            rescaled.
        nonnegative: whether step 2 is over rates ≥ 0.

    Returns:
        Rates, shape (S,), always finite, a tensor or an array like ``hessian``; zeros where an input is not
        finite.

    Raises:
        InputError: as :func:`~gnewton.cubic.solve_cubic`, and for a radius that is negative or NaN.
    """
    inputs = checked(hessian, gradient, third, damping)
    bound = _checked_radius(radius, len(inputs.gradient))
    nothing = inputs.answer(np.zeros(len(inputs.gradient)))
    if not inputs.finite:
        return nothing
    with np.errstate(all="ignore"):
        units = curvature_units(inputs.hessian, inputs.gradient, np.abs(np.diagonal(inputs.hessian)))
        try:
            positive = absolute_hessian(inputs.hessian, units)
        except np.linalg.LinAlgError:
            return nothing
        if not np.isfinite(positive).all():
            return nothing
        convex = solve_cubic(positive, inputs.gradient, inputs.third, inputs.damping, nonnegative=nonnegative)
        if not convex.bounded:
            return nothing
        rates = np.asarray(convex.rates)
        norm = np.ones_like(rates) if isinstance(bound, float) else units
        length = float(np.sqrt(norm @ rates**2))
        limit = bound if isinstance(bound, float) else float(np.sqrt(norm @ bound**2))
        rates = rates * (limit / length) if length > limit else rates
    return inputs.answer(rates) if np.isfinite(rates).all() else nothing


def _checked_radius(radius: float | Array, size: int) -> float | np.ndarray:
    if isinstance(radius, (int, float)):
        if math.isnan(radius) or radius < 0.0:
            raise InputError(f"radius={radius!r}: must be a number >= 0")
        return float(radius)
    if isinstance(radius, torch.Tensor):
        radius = radius.detach().to("cpu", torch.float64).numpy()
    rates = np.asarray(radius, dtype=np.float64)
    if rates.shape != (size,) or not np.isfinite(rates).all():
        raise InputError(f"radius has shape {rates.shape}: must be a number or {size} finite rates")
    return rates


def absolute_hessian(hessian: np.ndarray, units: np.ndarray) -> np.ndarray:
    """H with its eigenvalues, in the given units, replaced by their absolute values; positive definite.

    Eigenvalues below a hundredth of the largest are raised to that. The result is ⪰ H.
    """
    p = 1.0 / np.sqrt(units)
    values, vectors = np.linalg.eigh(hessian * p[:, None] * p[None, :])
    size = np.abs(values)
    size = np.maximum(size, _FLOOR * float(size.max()) if size.any() else 1.0)
    positive = (vectors * size) @ vectors.T / p[:, None] / p[None, :]
    return 0.5 * (positive + positive.T)
