"""The secular equation for the radius, and the minimiser at its root, refined by Newton's method."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gnewton.cubic.model import EPSILON, CubicModel
from gnewton.cubic.solution import residual
from gnewton.cubic.spectrum import Spectrum

_MAX_ITERATIONS = 200


@dataclass(frozen=True)
class Root:
    """The root of ``‖y(r)‖ = r``, written ``r = pole + offset`` so that a tiny offset keeps its digits.

    Attributes:
        pole: r0, the smallest radius at which M(r) is positive semidefinite (0 if it is at r = 0).
        offset: ``r − r0 ≥ 0``.
        gaps: ``α + β·r0`` of every term, shape (S,), non-negative; exactly zero for the term of the pole.
        terms: values ``α + β·r`` at the root, shape (S,).
        iterations: number of evaluations.
    """

    pole: float
    offset: float
    gaps: np.ndarray
    terms: np.ndarray
    iterations: int

    @property
    def radius(self) -> float:
        """The radius r."""
        return self.pole + self.offset


def solve_secular(alpha: np.ndarray, beta: np.ndarray, omega: np.ndarray) -> Root:
    """Solve ``Σ ω_i / (α_i + β_i r)² = r²`` for the largest r, with every ``α_i + β_i r ≥ 0``.

    With ``φ(r)² `` the left-hand side, Newton's method runs on ``1/φ(r) − 1/r``, which is increasing and
    concave on ``r > r0`` and close to linear (Conn, Gould & Toint, *Trust-Region Methods*, 2000, section
    7.3; Cartis, Gould & Toint 2011, section 6.1, for the cubic model). From a start below the root it
    converges monotonically from below, so no bracket is needed. The start is the largest root of any single
    term, which is exact for S = 1. If φ(r0) ≤ r0, there is no root above r0: the hard case, offset 0.

    Args:
        alpha: α, shape (S,), of any sign.
        beta: β ≥ 0, shape (S,); positive wherever α is negative.
        omega: ω ≥ 0, shape (S,).
    """
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        poles = np.where(beta > 0.0, -alpha / beta, -np.inf)
        pole = max(0.0, float(poles.max()))
        gaps = np.maximum(alpha + beta * pole, 0.0)
        if pole > 0.0:
            gaps[poles == pole] = 0.0
        live = omega > 0.0
        gap, slope, weight = gaps[live], beta[live], omega[live]
        size = np.sqrt(weight)
        excess = size - gap * pole
        linear = gap + slope * pole
        start = 2.0 * excess / (linear + np.sqrt(linear * linear + 4.0 * slope * np.maximum(excess, 0.0)))
        offset = float(start.max(initial=0.0))
        iterations = 0
        for iterations in range(1, _MAX_ITERATIONS + 1):  # noqa: B007
            term = gap + slope * offset
            share = weight / (term * term)
            square = float(share.sum())
            radius = pole + offset
            if not square > radius * radius:
                break
            norm = float(np.sqrt(square))
            # phi' / phi = −Σ β share / term / square; Newton on 1/phi − 1/r
            steepness = float((slope * share / term).sum()) / square
            step = (1.0 / radius - 1.0 / norm) / (steepness / norm + 1.0 / (radius * radius))
            if not offset + step > offset:
                break
            offset += step
            if step <= EPSILON * offset:
                break
    return Root(pole, offset, gaps, gaps + beta * offset, iterations)


_STEPS = 6
_GOOD_ENOUGH = 1e-14
_SINGULAR = 1e-9
_FAR_FROM_POLE = 1e-4


def minimiser(model: CubicModel, spectrum: Spectrum, root: Root) -> tuple[np.ndarray, bool]:
    """The scaled minimiser at a root, and whether it is a hard case.

    Where the pole's term dominates, its coefficient follows from ``‖y‖ = r`` instead of from a division by a
    number near zero (Nesterov & Polyak 2006, section 5; Moré & Sorensen 1983 for the hard case).
    """
    lowest = int(np.argmin(root.gaps)) if root.pole > 0.0 else -1
    with np.errstate(divide="ignore", invalid="ignore"):
        z = np.where(spectrum.coordinates == 0.0, 0.0, spectrum.coordinates / root.terms)
    if root.offset >= _FAR_FROM_POLE * root.pole:
        return _refined(model, spectrum, root, spectrum.up(z), -1), False
    vector = spectrum.up(_unit(model.size, lowest))
    pull = float(vector @ model.gradient)
    floor = 8.0 * model.size * EPSILON * float(np.abs(vector) @ np.abs(model.gradient))
    hard = abs(pull) <= floor and root.offset <= 1e-7 * root.pole
    z = np.where(root.terms <= 4.0 * EPSILON * np.abs(spectrum.alpha), 0.0, z)
    z[lowest] = 0.0
    x = _on_sphere(
        model,
        spectrum.up(z),
        vector,
        root.radius,
        _sign(np.sqrt(model.weights) * vector) if hard else pull,
    )
    return _refined(model, spectrum, root, x, lowest), hard


def _on_sphere(model: CubicModel, x: np.ndarray, vector: np.ndarray, r: float, sign: float) -> np.ndarray:
    """``x + τ·vector`` of radius r, with τ of the given sign (the larger one if both are)."""
    weighted = model.weights * vector
    square, cross = float(weighted @ vector), float(weighted @ x)
    missing = max(0.0, (r - model.radius(x)) * (r + model.radius(x)))
    reach = float(np.sqrt(cross * cross + square * missing))
    tau = (-cross + reach if sign > 0.0 else -cross - reach) / square
    return x + tau * vector


def _refined(model: CubicModel, spectrum: Spectrum, root: Root, x: np.ndarray, lowest: int) -> np.ndarray:
    """Newton's method on ``M(r)x = g, ‖Dx‖ = r`` with the spectrum as its (arrow-shaped) Jacobian."""
    r, terms = root.radius, root.terms.copy()
    best, best_residual = x, residual(model, x)
    for step in range(_STEPS):
        if (
            step > 0 and best_residual <= _GOOD_ENOUGH
        ):  # one step at least: the norm hides groups of low energy
            break
        dx, dr = _arrow_step(model, spectrum, terms, x, r, lowest)
        if not (np.isfinite(dx).all() and np.isfinite(dr)) or r + dr < 0.0:
            break
        x, r, terms = x + dx, r + dr, np.maximum(terms + spectrum.beta * dr, 0.0)
        now = residual(model, x)
        if not now < max(best_residual, _GOOD_ENOUGH):
            break
        improved = now < 0.5 * best_residual
        best, best_residual = x, now
        if not improved:
            break
    return best


def _arrow_step(
    model: CubicModel, spectrum: Spectrum, terms: np.ndarray, x: np.ndarray, r: float, lowest: int
) -> tuple[np.ndarray, float]:
    """Solve ``terms·dz + σ q dr = f, qᵀdz − r dr = h`` without dividing by the term of the pole."""
    norm = model.radius(x)
    f = spectrum.down(-model.slope(x, r))
    q = spectrum.down(model.weights * x)
    h = 0.5 * (r - norm) * (r + norm)
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = np.where(terms > _SINGULAR * np.abs(spectrum.alpha), 1.0 / terms, 0.0)
    sigma = model.sigma
    if lowest < 0 or inverse[lowest] > 0.0:
        denominator = r + sigma * float(q * q @ inverse)
        dr = (float((q * f) @ inverse) - h) / denominator if denominator > 0.0 else 0.0
        return spectrum.up((f - sigma * dr * q) * inverse), dr
    pole, force, pull = terms[lowest], float(f[lowest]), float(q[lowest])
    numerator = pole * (float((q * f) @ inverse) - h) + pull * force
    denominator = pole * (r + sigma * float((q * q) @ inverse)) + sigma * pull * pull
    dr = numerator / denominator if denominator > 0.0 else 0.0
    dz = (f - sigma * dr * q) * inverse
    dz[lowest] = (h + r * dr - float(q @ dz)) / pull if pull != 0.0 else 0.0
    return spectrum.up(dz), dr


def _unit(size: int, index: int) -> np.ndarray:
    unit = np.zeros(size)
    unit[index] = 1.0
    return unit


def _sign(y: np.ndarray) -> float:
    """The convention of the hard case: the first prominent entry of ``y = Dv`` is positive."""
    prominent = np.abs(y) >= 0.5 * np.abs(y).max()
    return float(np.sign(y[np.argmax(prominent)]))
