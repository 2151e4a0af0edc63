"""The result of a solve: the rates, their status and their certificate."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import TypeAlias

import numpy as np
import torch

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
