"""The secular equation: one scalar equation for the radius."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gnewton.cubic.model import EPSILON

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
