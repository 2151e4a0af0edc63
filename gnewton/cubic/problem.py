"""The model in numbers that neither overflow nor depend on the units of the groups.

Small models are bound by the overhead of each call into numpy, and that of ``a.dot(b)`` is half that of
``a @ b``: the common way through the solver prefers it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

EPSILON = float(np.finfo(np.float64).eps)
_PLAIN_EXPONENT = 200
_PLAIN_SQUARES = (1e-290, 1e290)


@dataclass(frozen=True)
class Problem:
    """``m(x) = −gᵀx + ½ xᵀHx + (σ/3)·‖Dx‖³`` in scaled variables ``x_s = η_s·2^exponents[s]``.

    The scales are powers of two, so scaling loses nothing.

    Attributes:
        hessian: H, shape (S, S), symmetric.
        gradient: g, shape (S,).
        weights: d² of each group, shape (S,); zero where the model has no cubic term.
        sigma: σ = λ/2 in scaled units; positive unless every weight is zero.
        exponents: the powers of two between rates and scaled variables, shape (S,).
    """

    hessian: np.ndarray
    gradient: np.ndarray
    weights: np.ndarray
    sigma: float
    exponents: np.ndarray

    @property
    def size(self) -> int:
        """Number of groups S."""
        return int(self.gradient.shape[0])

    @cached_property
    def diagonal(self) -> np.ndarray:
        """Diagonal of H, shape (S,)."""
        return np.ascontiguousarray(self.hessian.diagonal())

    def radius(self, x: np.ndarray) -> float:
        """``r = ‖Dx‖``."""
        return math.sqrt(self.weights.dot(x * x))

    def value(self, x: np.ndarray) -> float:
        """The model ``m(x)``."""
        r = self.radius(x)
        return float(0.5 * (x @ (self.hessian @ x)) - self.gradient @ x) + self.sigma / 3.0 * r * r * r

    def slope(self, x: np.ndarray, r: float) -> np.ndarray:
        """``M(r)x − g``, shape (S,): the gradient of the model where ``r = ‖Dx‖``."""
        out: np.ndarray = self.hessian.dot(x) + (self.sigma * r) * (self.weights * x) - self.gradient
        return out

    def rates(self, x: np.ndarray) -> np.ndarray:
        """Learning rates of the scaled variables ``x``; infinite where float64 cannot hold them."""
        out: np.ndarray = np.ldexp(x, -self.exponents)
        return out


def scaled(hessian: np.ndarray, gradient: np.ndarray, third: np.ndarray, damping: float) -> Problem:
    """Bring the model to units in which the groups with a cubic term have ``1 ≤ d < 2`` and r is near one.

    Groups without a cubic term get a diagonal of the Hessian near one instead.

    Args:
        hessian: H̄, shape (S, S), symmetric and finite.
        gradient: ḡ, shape (S,).
        third: D3, shape (S,); ``d = |D3|^{1/3}``.
        damping: λ_int ≥ 0.
    """
    d = np.cbrt(np.abs(third))
    sigma = 0.5 * damping
    if sigma == 0.0:
        d = np.zeros_like(d)
    diagonal = hessian.diagonal()
    if not d.any():
        exponents = _half_log2(diagonal)
        return Problem(_congruent(hessian, exponents), np.ldexp(gradient, -exponents), d, 0.0, exponents)
    mantissa, exponents = np.frexp(d)  # zero, hence of weight zero, for the bare groups
    exponents -= 1
    sigma_mantissa, sigma_exponent = math.frexp(sigma)
    bare = None if d.all() else d == 0.0
    curved = slice(None) if bare is None else ~bare
    length = _radius_exponent(diagonal[curved], gradient[curved], d[curved], sigma)
    # x = y / 2^length and energies in units of 2^(sigma_exponent + 3 length): then sigma is in [1/2, 1)
    stiffness = sigma_exponent + length
    if bare is not None:
        exponents[bare] = _half_log2(diagonal[bare], stiffness)
    return Problem(
        hessian=_congruent(hessian, exponents, stiffness),
        gradient=np.ldexp(gradient, -(stiffness + length) - exponents),
        weights=4.0 * mantissa * mantissa,
        sigma=sigma_mantissa,
        exponents=exponents - length,
    )


def equilibration(diagonal: np.ndarray) -> np.ndarray:
    """Powers of two p, shape (S,), that bring the positive ``diagonal·p²`` into [1/2, 2]."""
    out: np.ndarray = np.ldexp(1.0, -_half_log2(diagonal))
    return out


def _half_log2(diagonal: np.ndarray, shift: int = 0) -> np.ndarray:
    """Half of the binary exponents of ``|diagonal|·2^−shift``, rounded; zero where the diagonal is zero."""
    exponent = np.frexp(diagonal)[1].astype(np.int64)
    return np.where(diagonal == 0.0, 0, (exponent - shift) >> 1)


def _congruent(hessian: np.ndarray, exponents: np.ndarray, shift: int = 0) -> np.ndarray:
    """``hessian[s, t]·2^−(exponents[s] + exponents[t] + shift)``, by products where they cannot overflow."""
    left = -exponents
    widest = max(left.max(), -left.min()) + abs(shift)
    if widest < _PLAIN_EXPONENT and _PLAIN_SQUARES[0] < np.vdot(hessian, hessian) < _PLAIN_SQUARES[1]:
        p = np.ldexp(1.0, left)
        product: np.ndarray = hessian * p[:, None]
        product *= p * 2.0**-shift
        return product
    out: np.ndarray = np.ldexp(hessian, (left - shift)[:, None] + left[None, :])
    return out


def _radius_exponent(diagonal: np.ndarray, gradient: np.ndarray, d: np.ndarray, sigma: float) -> int:
    """Binary exponent of the largest radius that any single group would take on its own."""
    stiffness = diagonal / d / d
    force = np.abs(gradient) / d
    root = np.hypot(stiffness, (2.0 * math.sqrt(sigma)) * np.sqrt(force))
    reach = np.abs(stiffness) + root
    alone = np.where(stiffness > 0.0, 2.0 * force / reach, reach / (2.0 * sigma))
    largest = float(alone.max())
    if not 0.0 < largest < math.inf:  # or NaN
        usable = alone[np.isfinite(alone) & (alone > 0.0)]
        if usable.size == 0:
            usable = np.abs(stiffness[np.isfinite(stiffness) & (stiffness != 0.0)]) / sigma
        usable = usable[np.isfinite(usable) & (usable > 0.0)]
        largest = float(usable.max(initial=0.0))
    return math.frexp(largest)[1]
