"""The certificate: how well given rates satisfy the conditions of a global minimiser.

Results of a division by zero are corrected afterwards; :func:`~gnewton.cubic.solve_cubic` silences numpy's
warning.
"""

from __future__ import annotations

import math

import numpy as np

from gnewton.cubic.model import CubicModel


def energy_scale(model: CubicModel, r: float) -> np.ndarray:
    """``|H_ss| + σ r d_s²``, shape (S,): the units of the certificate."""
    return np.abs(model.diagonal) + model.sigma * r * model.weights


def residual(model: CubicModel, x: np.ndarray) -> float:
    """Relative residual of ``M(‖Dx‖) x = g``; see :class:`gnewton.cubic.CubicSolution`."""
    r = model.radius(x)
    return relative_size(model.slope(x, r), model, x, r)


def relative_size(slope: np.ndarray, model: CubicModel, x: np.ndarray, r: float) -> float:
    """``‖slope‖ / (‖g‖ + ‖x‖)`` in the units of :func:`energy_scale`; infinite if it is not a number."""
    unit = np.sqrt(energy_scale(model, r))
    value = _ratio(slope / unit, model.gradient / unit, unit * x)
    if not math.isfinite(value):  # a unit of zero is harmless where the numerator is zero
        error = np.where(slope == 0.0, 0.0, slope / unit)
        force = np.where(model.gradient == 0.0, 0.0, model.gradient / unit)
        value = _ratio(error, force, unit * x)
    return value if math.isfinite(value) else math.inf


def _ratio(error: np.ndarray, force: np.ndarray, energy: np.ndarray) -> float:
    wrong = math.sqrt(error.dot(error))
    return wrong / (math.sqrt(force.dot(force)) + math.sqrt(energy.dot(energy))) if wrong else 0.0


def curvature_margin(model: CubicModel, r: float, vector: np.ndarray) -> float:
    """Rayleigh quotient of M(r) along the lowest eigenvector of (H, D²), relative to its own terms.

    ``vᵀM(r)v / (σ r vᵀD²v + |v|ᵀ|H||v|)``: at most one, zero in the hard case.
    """
    cubic = model.sigma * r * float(model.weights.dot(vector * vector))
    size = np.abs(vector)
    scale = cubic + float(size.dot(np.abs(model.hessian).dot(size)))
    if scale == 0.0:
        return 0.0
    return (cubic + float(vector.dot(model.hessian.dot(vector)))) / scale


def natural_residual(model: CubicModel, x: np.ndarray) -> float:
    """Relative residual of the KKT conditions of ``min m(x), x ≥ 0``.

    In the units of :func:`energy_scale`, ``‖min(x, ∇m)‖ / (‖g‖ + ‖x‖)``: zero iff x ≥ 0, ∇m ≥ 0 and
    ``x_s ∇m_s = 0`` for every group.
    """
    r = model.radius(x)
    slope = model.slope(x, r)
    unit = energy_scale(model, r)
    step = np.where(slope == 0.0, 0.0, slope / unit)
    return relative_size(np.where(step <= x, slope, unit * x), model, x, r)
