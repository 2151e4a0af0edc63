"""The fast path for the common case: one tridiagonal reduction, then a secular equation at O(S) a step."""

from __future__ import annotations

import math

import numpy as np
from scipy.linalg import lapack

from gnewton.cubic.model import EPSILON, CubicModel
from gnewton.cubic.solution import (
    TRUSTED_NOISE,
    TRUSTED_RESIDUAL,
    Candidate,
    CubicStatus,
    curvature_margin,
    relative_size,
)

_MAX_ITERATIONS = 60
_REFINEMENTS = 2
_SHARP = 3e-14
_CLEAR_OF_POLE = 1e4
_UNBLOCKED = 64
_BY_INDEX = 2  # dstebz: eigenvalues by number


class _Reduction:
    """``D⁻¹HD⁻¹ = Q T Qᵀ`` with T tridiagonal and Q kept as reflectors; every weight must be positive."""

    def __init__(self, model: CubicModel) -> None:
        self.inverse = 1.0 / np.sqrt(model.weights)
        k = model.hessian * self.inverse[:, None]
        k *= self.inverse
        size = model.size
        # workspace for the blocked algorithm only where it pays; k.T is k in LAPACK's order of storage
        work = size if size <= _UNBLOCKED else 32 * size
        packed, self.diagonal, self.off, self.tau, _ = lapack.dsytrd(k.T, lower=1, lwork=work, overwrite_a=1)
        self.reflectors = np.asfortranarray(packed[1:, :-1])
        self.force = self.down(model.gradient)
        reach = np.abs(self.diagonal)
        beside = np.abs(self.off)
        reach[:-1] += beside
        reach[1:] += beside
        self.norm = float(reach.max())

    def up(self, z: np.ndarray) -> np.ndarray:
        """``D⁻¹Q z``."""
        return self.inverse * self._turned(z.copy(), "N")

    def down(self, f: np.ndarray) -> np.ndarray:
        """``QᵀD⁻¹ f``."""
        return self._turned(self.inverse * f, "T")

    def lowest(self) -> tuple[float, np.ndarray] | None:
        """The lowest eigenpair of T, by bisection and inverse iteration; None if that does not converge."""
        count, values, block, split, info = lapack.dstebz(
            self.diagonal, self.off, _BY_INDEX, 0.0, 0.0, 1, 1, 0.0, "B"
        )
        if info != 0 or count != 1:
            return None
        vectors, info = lapack.dstein(self.diagonal, self.off, values[:1], block, split)
        return (float(values[0]), vectors[:, 0]) if info == 0 else None

    def _turned(self, z: np.ndarray, trans: str) -> np.ndarray:
        """Q or Qᵀ applied to z, which is overwritten; Q leaves the first entry unchanged."""
        z[1:, None] = lapack.dormqr("L", trans, self.reflectors, self.tau, z[1:, None], 64, overwrite_c=1)[0]
        return z


def quick_candidate(model: CubicModel) -> Candidate | None:
    """The minimiser of a model that is neither graded nor near the hard case; None where it may be either.

    Newton's method on ``1/‖y(r)‖ − 1/r`` rises from below to the root, as in
    :func:`~gnewton.cubic.secular.solve_secular`, but each evaluation solves ``(T + σr)y = QᵀD⁻¹g``. Only the
    lowest eigenpair of T is computed. The candidate is returned only if its certificate holds.

    Args:
        model: a cubic model of at least two groups, all with a cubic term.
    """
    basis = _Reduction(model)
    if not math.isfinite(basis.norm):
        return None
    pair = basis.lowest()
    if pair is None:
        return None
    kappa, lowest = pair
    sigma, pole = model.sigma, max(0.0, -kappa / model.sigma)
    start = max(
        _single_term(abs(float(lowest.dot(basis.force))), kappa + sigma * pole, pole, sigma),
        _single_term(math.sqrt(basis.force.dot(basis.force)), basis.norm + sigma * pole, pole, sigma),
    )
    noise = 4.0 * math.sqrt(model.size) * EPSILON * basis.norm
    r = pole + start
    if kappa + sigma * r < _CLEAR_OF_POLE * noise or noise > TRUSTED_NOISE * (abs(kappa) + sigma * r):
        return None
    rise = _rise(model, basis, r)
    if rise is None:
        return None
    x, length, error, iterations = rise
    bottom = basis.up(lowest)
    margin = curvature_margin(model, length, bottom)
    candidate = Candidate(x, CubicStatus.INTERIOR, error, margin, iterations, bottom)
    return candidate if candidate.passes and error <= TRUSTED_RESIDUAL else None


def _single_term(size: float, gap: float, pole: float, slope: float) -> float:
    """The offset at which ``size / (gap + slope·offset) = pole + offset``, or 0: a lower bound."""
    gap = max(gap, 0.0)
    excess, linear = size - gap * pole, gap + slope * pole
    if not excess > 0.0:
        return 0.0
    return 2.0 * excess / (linear + math.sqrt(linear * linear + 4.0 * slope * excess))


def _rise(model: CubicModel, basis: _Reduction, r: float) -> tuple[np.ndarray, float, float, int] | None:
    """Newton's method from below, then the refinement of the vector; None where T + σr is not definite.

    Returns x, its radius, its residual and the number of evaluations.
    """
    sigma = model.sigma
    iterations = 0
    for iterations in range(1, _MAX_ITERATIONS + 1):  # noqa: B007
        diagonal, off, info = lapack.dpttrf(basis.diagonal + sigma * r, basis.off)
        if info != 0:
            return None
        y = lapack.dpttrs(diagonal, off, basis.force)[0]
        w = lapack.dpttrs(diagonal, off, y)[0]
        square, bend = float(y.dot(y)), sigma * float(y.dot(w))
        if not (math.isfinite(square) and math.isfinite(bend)) or square == 0.0:
            return None
        norm = math.sqrt(square)
        step = (1.0 / r - 1.0 / norm) / (bend / square / norm + 1.0 / (r * r))
        if norm <= r or step <= 4.0 * EPSILON * r:
            break
        r += step
    x = basis.up(y)
    for refinement in range(_REFINEMENTS + 1):
        length = model.radius(x)
        slope = model.slope(x, length)
        error = relative_size(slope, model, x, length)
        if error <= _SHARP or refinement == _REFINEMENTS:
            break
        g = lapack.dpttrs(diagonal, off, basis.down(-slope))[0]
        dr = float(y.dot(g)) / (r + bend)
        x = x + basis.up(g - sigma * dr * w)
    return x, length, error, iterations
