"""A candidate for the minimiser, and what it takes to believe it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from gnewton.cubic.solution import MARGIN_LIMIT, RESIDUAL_LIMIT, CubicStatus

TRUSTED_NOISE = 1e-10
"""Rounding error of the lowest curvature, relative to κ_min and σr, below which its sign is beyond doubt."""

TRUSTED_RESIDUAL = 1e-12
"""Residual that a solve must reach before a more careful one is skipped."""


@dataclass(frozen=True)
class Candidate:
    """A point in scaled variables with its certificate.

    Attributes:
        x: the point, shape (S,).
        status: what it is.
        residual: relative residual of the first-order condition at x.
        margin: relative curvature margin at x.
        iterations: iterations it took.
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
        """Itself, or marked as uncertified."""
        return self if self.passes else replace(self, status=CubicStatus.UNCERTIFIED)
