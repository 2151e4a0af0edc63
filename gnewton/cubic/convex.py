"""A convex stand-in for an indefinite Hessian."""

from __future__ import annotations

import numpy as np

_FLOOR = 1e-2


def curvature_units(hessian: np.ndarray, gradient: np.ndarray, curvature: np.ndarray) -> np.ndarray:
    """Positive curvature units of each group, shape (S,), that scale with the group (by a⁴ if η by 1/a²).

    These are the given ``curvature ≥ 0``; where it is zero, the largest ``H_st² / curvature_t``; where that
    is zero too, what makes the group's own ``g_s² / curvature_s`` as large as the others'; else one.
    """
    units = curvature.copy()
    known = units > 0.0
    for s in np.flatnonzero(~known):
        units[s] = (hessian[s, known] ** 2 / curvature[known]).max(initial=0.0)
    known = units > 0.0
    energy = (gradient[known] ** 2 / units[known]).max(initial=0.0)
    own = gradient**2 / (energy if energy > 0.0 else max(float(np.abs(gradient).max()), 1.0))
    units = np.where(known, units, own)
    return np.where((units > 0.0) & np.isfinite(units), units, 1.0)


def absolute_hessian(hessian: np.ndarray, units: np.ndarray) -> np.ndarray:
    """H with its eigenvalues, in the given units, replaced by their absolute values; positive definite.

    Eigenvalues below a hundredth of the largest are raised to that. The result is ⪰ H.
    """
    p = 1.0 / np.sqrt(units)
    values, vectors = np.linalg.eigh(hessian * p[:, None] * p[None, :])
    size = np.abs(values)
    size = np.maximum(size, _FLOOR * float(size.max()) if size.any() else 1.0)
    positive = (vectors * size) @ vectors.T / p[:, None] / p[None, :]
    out: np.ndarray = 0.5 * (positive + positive.T)
    return out
