"""Bases in which M(r) is diagonal for every radius r at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import lapack

from gnewton.cubic.model import EPSILON, CubicModel, equilibration

_MAX_FACTORISATIONS = 80
_WIDEST_BRACKET = 1e3
_NEGLIGIBLE_SHIFT = 1e-7
_PIVOTS = (1e-5, 1.5e-8)
_SOFT = 0.1


@dataclass(frozen=True)
class Spectrum:
    """A basis X with ``Xᵀ M(r) X = diag(α + β·r)``.

    Attributes:
        alpha: α, shape (S,).
        beta: β ≥ 0, shape (S,).
        omega: ``ω ≥ 0``, shape (S,), such that ``‖D M(r)⁻¹ g‖² = Σ ω / (α + β r)²``.
        coordinates: ``Xᵀg``, shape (S,).
        noise: rounding error of α + β·r in units of its largest terms.
        left: second factor of X, shape (S, S).
        right: first factor of X, shape (S, S), or (S,) where it is diagonal.
    """

    alpha: np.ndarray
    beta: np.ndarray
    omega: np.ndarray
    coordinates: np.ndarray
    noise: float
    left: np.ndarray
    right: np.ndarray

    def up(self, z: np.ndarray) -> np.ndarray:
        """``X z``."""
        rotated = self.left @ z
        return self.right * rotated if self.right.ndim == 1 else self.right @ rotated

    def down(self, x: np.ndarray) -> np.ndarray:
        """``Xᵀ x``."""
        turned = self.right * x if self.right.ndim == 1 else x @ self.right
        return turned @ self.left


def plain_spectrum(model: CubicModel) -> Spectrum:
    """One eigendecomposition of ``K = D⁻¹HD⁻¹``: fast, accurate to ε‖K‖. Every weight must be positive.

    Raises:
        numpy.linalg.LinAlgError: if the decomposition does not converge.
    """
    inverse = 1.0 / np.sqrt(model.weights)
    kappa, basis = np.linalg.eigh(model.hessian * inverse[:, None] * inverse[None, :])
    coordinates = (inverse * model.gradient) @ basis
    return Spectrum(
        alpha=kappa,
        beta=np.full_like(kappa, model.sigma),
        omega=coordinates * coordinates,
        coordinates=coordinates,
        noise=4.0 * np.sqrt(model.size) * EPSILON * float(np.abs(kappa).max()),
        left=basis,
        right=inverse,
    )


@dataclass(frozen=True)
class Factor:
    """Cholesky factor of an equilibrated positive definite ``M(r) = p⁻¹ L Lᵀ p⁻¹``.

    Attributes:
        radius: r.
        lower: L, shape (S, S).
        scale: p, shape (S,), powers of two.
        solution: ``x = M(r)⁻¹ g``.
        norm: ``‖Dx‖``.
    """

    radius: float
    lower: np.ndarray
    scale: np.ndarray
    solution: np.ndarray
    norm: float

    def solve(self, f: np.ndarray) -> np.ndarray:
        """``M(r)⁻¹ f``."""
        return _solve(self.lower, self.scale, f)


def factorise(model: CubicModel, r: float, pivot: float = _PIVOTS[-1]) -> Factor | None:
    """Factor M(r), or return None where it is not positive definite to working precision.

    That is, where a pivot of the equilibrated L is not above ``pivot``. Cholesky's error is relative to the
    diagonal of each row and column, so groups of very different scales do no harm.
    """
    diagonal = model.diagonal + model.sigma * r * model.weights
    if not (diagonal > 0.0).all() or not np.isfinite(diagonal).all():
        return None
    p = equilibration(diagonal)
    matrix = model.hessian * p[:, None] * p[None, :]
    matrix.flat[:: model.size + 1] = diagonal * p * p
    if np.abs(matrix).max() > 2.0:  # a 2 x 2 minor is negative
        return None
    lower, info = lapack.dpotrf(matrix, lower=1, clean=1, overwrite_a=1)
    if info != 0 or lower.diagonal().min() <= pivot:
        return None
    x = _solve(lower, p, model.gradient)
    return Factor(r, lower, p, x, model.radius(x))


def _solve(lower: np.ndarray, p: np.ndarray, f: np.ndarray) -> np.ndarray:
    half, _ = lapack.dtrtrs(lower, p * f, lower=1)
    whole, _ = lapack.dtrtrs(lower, half, lower=1, trans=1)
    return p * whole


def find_shift(model: CubicModel, start: float) -> Factor | None:
    """A factorisation of M(r) at a radius within a few orders of magnitude of the solution's.

    The search is for a well-conditioned M(r) first, then for any positive definite one.

    Returns:
        The factor, or None where no radius makes M(r) positive definite in float64.
    """
    for pivot in _PIVOTS:
        factor = _find_shift(model, start, pivot)
        if factor is not None:
            return factor
    return None


def _find_shift(model: CubicModel, start: float, pivot: float) -> Factor | None:
    """Bracket the shift in the logarithm of r.

    Below the bracket lies a radius where M(r) is not definite enough or where ‖y(r)‖ > r, above it one with
    ‖y(r)‖ < r; Newton's method on 1/‖y‖ − 1/r gives a second lower bound.
    """
    low, high, best, growth, r = 0.0, np.inf, None, 8.0, start
    for _ in range(_MAX_FACTORISATIONS):
        factor = factorise(model, r, pivot)
        if factor is None:
            low = max(low, r)
        elif factor.norm >= r:
            best, low = factor, r
            if factor.norm <= _WIDEST_BRACKET * r:
                return factor
        else:
            best, high = factor, r
            if model.sigma * r * (model.weights * factor.scale**2).max() < _NEGLIGIBLE_SHIFT:
                return factor
            low = max(low, _newton(model, factor))
        if high <= _WIDEST_BRACKET * low:
            return best
        if np.isfinite(high):
            r = float(np.sqrt(low) * np.sqrt(high)) if low > 0.0 else high / growth
        else:
            r *= growth
        growth = min(growth * growth, 1e60)
        if not 1e-290 < r < 1e290:
            break
    return best


def _newton(model: CubicModel, factor: Factor) -> float:
    """One Newton step on ``1/‖y(r)‖ − 1/r``: from above the solution it lands below it."""
    square = factor.norm * factor.norm
    if square == 0.0 or not np.isfinite(square) or factor.radius * factor.radius == 0.0:
        return 0.0
    r, norm = factor.radius, factor.norm
    bent, _ = lapack.dtrtrs(factor.lower, factor.scale * model.weights * factor.solution, lower=1)
    steepness = model.sigma * float(bent @ bent) / square
    step = (1.0 / r - 1.0 / norm) / (steepness / norm + 1.0 / (r * r))
    return r + step if np.isfinite(step) else 0.0


def shifted_spectrum(model: CubicModel, factor: Factor) -> Spectrum:
    """Decompose ``L⁻¹ (σ r̂ D²) L⁻ᵀ`` at a factor of ``M(r̂) = LLᵀ``: accurate however graded d and H are.

    With its eigenvalues μ, ``M(r) = L U (1 + μ (r − r̂)/r̂) Uᵀ Lᵀ``. The smallest eigenvalue of ``D⁻¹HD⁻¹`` is
    ``σ r̂ (1/μ_max − 1)``: the largest μ, which an eigensolver finds to full relative accuracy. Groups without
    a cubic term (d = 0) have zero columns, and are eliminated by the factorisation: their Schur complement
    is never formed.

    Raises:
        numpy.linalg.LinAlgError: if the decomposition does not converge.
    """
    r, p, x = factor.radius, factor.scale, factor.solution
    inverse, info = lapack.dtrtri(factor.lower, lower=1)
    if info != 0:
        raise np.linalg.LinAlgError("singular factor")
    half = inverse * (p * np.sqrt(model.sigma * r * model.weights))[None, :]
    mu, basis = np.linalg.eigh(half @ half.T)
    mu = np.maximum(mu, 0.0)
    right = p[:, None] * inverse.T
    w = (model.gradient @ right) @ basis
    # pull = Uᵀ B D x = mu w / sqrt(σ r̂). Along soft directions it is the more accurate source of w, whose
    # error is relative to all of g; along stiff ones it keeps the digits of a tiny mu.
    root = np.sqrt(model.sigma * r)
    pull = (half @ (np.sqrt(model.weights) * x)) @ basis
    w = np.where(mu > _SOFT, root * pull / np.maximum(mu, _SOFT), w)
    omega = np.maximum(pull * w, 0.0) / root
    return Spectrum(
        alpha=1.0 - mu,
        beta=mu / r,
        omega=omega,
        coordinates=w,
        noise=8.0 * np.sqrt(model.size) * EPSILON * float(max(1.0, mu.max())),
        left=basis,
        right=right,
    )
