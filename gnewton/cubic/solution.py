"""The result of a solve: the rates, their status, and the certificate of the global minimiser.

The certificate divides by zero in places and corrects the result afterwards;
:func:`~gnewton.cubic.solve_cubic` silences numpy's warning.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import Enum
from typing import TypeAlias

import numpy as np
import torch

from gnewton.cubic.model import CubicModel

Array: TypeAlias = "np.ndarray | torch.Tensor"

RESIDUAL_LIMIT = 1e-9
"""Largest relative residual of the first-order condition that counts as solved."""

MARGIN_LIMIT = -1e-8
"""Smallest relative curvature margin that counts as positive semidefinite."""


TRUSTED_NOISE = 1e-10
"""Rounding error of the lowest curvature, relative to κ_min and σr, below which its sign is certain."""

TRUSTED_RESIDUAL = 1e-12
"""Largest residual at which a more accurate solve is skipped."""


class CubicStatus(str, Enum):
    """How a solve ended. The first five have a usable minimiser, the others none.

    Attributes:
        INTERIOR: the global minimiser; ``M(r)`` is positive definite.
        HARD_CASE: a global minimiser with ``M(r)`` singular: the gradient has, within rounding, no component
            along the lowest curvature, so the opposite step along it is as good.
        QUADRATIC: there is no cubic term; the minimiser of a convex quadratic.
        NONNEGATIVE_GLOBAL: the minimiser over non-negative rates, proved global.
        NONNEGATIVE_LOCAL: the best of several starts over non-negative rates: it satisfies the first-order
            (KKT) conditions, but nothing proves that no better one exists.
        UNBOUNDED: the model has no lower bound, hence no minimiser.
        INVALID_INPUT: an input is not finite, or the minimiser is too large for float64.
        UNCERTIFIED: the candidate misses the limits of the certificate (rounding).
    """

    INTERIOR = "interior"
    HARD_CASE = "hard_case"
    QUADRATIC = "quadratic"
    NONNEGATIVE_GLOBAL = "nonnegative_global"
    NONNEGATIVE_LOCAL = "nonnegative_local"
    UNBOUNDED = "unbounded"
    INVALID_INPUT = "invalid_input"
    UNCERTIFIED = "uncertified"

    def __str__(self) -> str:
        return self.value


_WITHOUT_MINIMISER = (CubicStatus.UNBOUNDED, CubicStatus.INVALID_INPUT, CubicStatus.UNCERTIFIED)


@dataclass(frozen=True)
class CubicSolution:
    """The minimiser of the cubic model with its certificate.

    Attributes:
        rates: learning rates η, shape (S,), float64 on the CPU: a tensor if the inputs were tensors, else a
            numpy array. All zeros where :attr:`bounded` is false; never NaN or infinite.
        radius: r = ‖Dη‖ of these rates.
        status: how the solve ended.
        residual: relative residual of the first-order condition ``M(r)η = ḡ`` (of the KKT conditions for
            non-negative rates), in units in which every ``|H̄_ss| + (λ/2) r d_s²`` is one:
            ``‖M(r)η − ḡ‖ / (‖ḡ‖ + ‖η‖)``. It does not change when groups are rescaled.
        curvature_margin: smallest eigenvalue of ``D⁻¹M(r)D⁻¹``, relative to the size of the terms that add
            up to it (without a cubic term: of ``H̄`` scaled to a unit diagonal; to a hundredth for over 256
            groups, where Cholesky's factorisation proves its sign). Non-negative means that no
            other stationary point is lower; within rounding, ``-1e-8`` is accepted.
        iterations: evaluations of the secular equation (of the projected Newton method for non-negative
            rates).
    """

    rates: Array
    radius: float
    status: CubicStatus
    residual: float
    curvature_margin: float
    iterations: int

    @property
    def bounded(self) -> bool:
        """Whether :attr:`rates` is a usable minimiser."""
        return self.status not in _WITHOUT_MINIMISER

    @property
    def certified(self) -> bool:
        """Whether :attr:`rates` is a proved global minimiser, within the limits of the certificate."""
        return (
            self.bounded
            and self.status is not CubicStatus.NONNEGATIVE_LOCAL
            and self.residual <= RESIDUAL_LIMIT
            and self.curvature_margin >= MARGIN_LIMIT
        )


@dataclass(frozen=True)
class Candidate:
    """A candidate for the minimiser, in scaled variables, with its certificate.

    Attributes:
        x: the point, shape (S,).
        status: the kind of minimiser.
        residual: relative residual of the first-order condition at x.
        margin: relative curvature margin at x.
        iterations: number of iterations.
        lowest: the lowest eigenvector of (H, D²), shape (S,); None without a cubic term.
    """

    x: np.ndarray
    status: CubicStatus
    residual: float
    margin: float
    iterations: int
    lowest: np.ndarray | None = None

    @property
    def passes(self) -> bool:
        """Whether the certificate is within its limits."""
        return self.residual <= RESIDUAL_LIMIT and self.margin >= MARGIN_LIMIT

    def judged(self) -> Candidate:
        """The candidate, marked as uncertified if it does not pass."""
        return self if self.passes else replace(self, status=CubicStatus.UNCERTIFIED)


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
