"""The cubic model in variables scaled so that nothing overflows or depends on the units of the groups.

The time for a small model is the overhead of the calls into numpy. ``a.dot(b)`` has half the overhead of
``a @ b``, so the common path through the solver uses it.
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
class CubicModel:
    """``m(x) = −gᵀx + ½ xᵀHx + (σ/3)·‖Dx‖³`` in scaled variables ``x_s = η_s·2^exponents[s]``.

    The scales are powers of two, so scaling is exact.

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
        return self.hessian.dot(x) + (self.sigma * r) * (self.weights * x) - self.gradient

    def rates(self, x: np.ndarray) -> np.ndarray:
        """Learning rates of the scaled variables ``x``; infinite where float64 cannot hold them."""
        return np.ldexp(x, -self.exponents)


def scaled(hessian: np.ndarray, gradient: np.ndarray, third: np.ndarray, damping: float) -> CubicModel:
    """Scale the model such that ``1 ≤ d < 2`` for the groups with a cubic term and r is near one.

    For groups without a cubic term the diagonal of the Hessian is near one instead.

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
        return CubicModel(_congruent(hessian, exponents), np.ldexp(gradient, -exponents), d, 0.0, exponents)
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
    return CubicModel(
        hessian=_congruent(hessian, exponents, stiffness),
        gradient=np.ldexp(gradient, -(stiffness + length) - exponents),
        weights=4.0 * mantissa * mantissa,
        sigma=sigma_mantissa,
        exponents=exponents - length,
    )


def equilibration(diagonal: np.ndarray) -> np.ndarray:
    """Powers of two p, shape (S,), that bring the positive ``diagonal·p²`` into [1/2, 2]."""
    return np.ldexp(1.0, -_half_log2(diagonal))


def curvature_units(hessian: np.ndarray, gradient: np.ndarray, curvature: np.ndarray) -> np.ndarray:
    """Positive curvature units of each group, shape (S,), that scale with the group (by a⁴ if η by 1/a²).

    A unit is the group's ``curvature ≥ 0``. Where that is zero, it is the largest ``H_st² / curvature_t``.
    Where that is zero too, it makes ``g_s² / unit_s`` as large as that of the other groups; else it is one.
    """
    units = curvature.copy()
    known = units > 0.0
    for s in np.flatnonzero(~known):
        units[s] = (hessian[s, known] ** 2 / curvature[known]).max(initial=0.0)
    known = units > 0.0
    energy = (gradient[known] ** 2 / units[known]).max(initial=0.0)
    remaining = gradient**2 / (energy if energy > 0.0 else max(float(np.abs(gradient).max()), 1.0))
    units = np.where(known, units, remaining)
    return np.where((units > 0.0) & np.isfinite(units), units, 1.0)


def _half_log2(diagonal: np.ndarray, shift: int = 0) -> np.ndarray:
    """Half of the binary exponents of ``|diagonal|·2^−shift``, rounded; zero where the diagonal is zero."""
    exponent = np.frexp(diagonal)[1].astype(np.int64)
    return np.where(diagonal == 0.0, 0, (exponent - shift) >> 1)


def _congruent(hessian: np.ndarray, exponents: np.ndarray, shift: int = 0) -> np.ndarray:
    """``hessian[s, t]·2^−(exponents[s] + exponents[t] + shift)``, by products where these cannot overflow."""
    left = -exponents
    widest = max(left.max(), -left.min()) + abs(shift)
    if widest < _PLAIN_EXPONENT and _PLAIN_SQUARES[0] < np.vdot(hessian, hessian) < _PLAIN_SQUARES[1]:
        p = np.ldexp(1.0, left)
        product = hessian * p[:, None]
        product *= p * 2.0**-shift
        return product
    return np.ldexp(hessian, (left - shift)[:, None] + left[None, :])


def _radius_exponent(diagonal: np.ndarray, gradient: np.ndarray, d: np.ndarray, sigma: float) -> int:
    """Binary exponent of the largest radius that a single group would have on its own."""
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
