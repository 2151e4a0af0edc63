"""Directions z ≥ 0 along which the model has no cubic term and falls without end."""

from __future__ import annotations

import numpy as np

from gnewton.cubic.problem import Problem

_SEED = 0
_ROUNDING = 1e-12
_RANDOM_STARTS = 8
_POWER_STEPS = 300


def falls_along(problem: Problem, x: np.ndarray) -> bool:
    """Whether ``x ≥ 0``, with the groups that have a cubic term left out, is a ray without a lower bound.

    That is, z = x there, 0 elsewhere, has ``zᵀHz < 0``; or ``zᵀHz = 0`` within rounding, and either the
    gradient pulls along it or some other group, made positive, would (``(Hz)_s < 0``).
    """
    z = np.where(problem.weights == 0.0, x, 0.0)
    if not z.any() or not np.isfinite(z).all():
        return False
    z = z / z.max()
    bent = problem.hessian @ z
    size = np.abs(problem.hessian) @ z
    curvature, noise = float(z @ bent), _ROUNDING * float(z @ size)
    if curvature < -noise:
        return True
    pull = float(problem.gradient @ z)
    pulled = pull > _ROUNDING * float(np.abs(problem.gradient) @ z)
    return curvature <= noise and (pulled or bool((bent < -1e-8 * size).any()))


def falls_forever(problem: Problem, units: np.ndarray) -> bool:
    """Look for a direction z ≥ 0 without cubic term and with ``zᵀHz < 0``: a proof that there is no minimum.

    Single groups, pairs, and projected power iterations from several starts. (To decide whether none exists
    is NP-hard in general: Murty & Kabadi 1987.)
    """
    flat = np.flatnonzero(problem.weights == 0.0)
    p = 1.0 / np.sqrt(units[flat])
    block = problem.hessian[np.ix_(flat, flat)] * p[:, None] * p[None, :]
    diagonal = np.diagonal(block)
    if (diagonal < 0.0).any():
        return True
    pairs = block + np.sqrt(diagonal[:, None] * diagonal[None, :])
    candidates = list(np.eye(flat.size)[diagonal == 0.0])
    if flat.size > 1:
        np.fill_diagonal(pairs, np.inf)
        s, t = np.unravel_index(int(pairs.argmin()), pairs.shape)
        pair = np.zeros(flat.size)
        pair[s], pair[t] = (
            (np.sqrt(diagonal[t]), np.sqrt(diagonal[s])) if diagonal[s] * diagonal[t] > 0 else (1.0, 1.0)
        )
        candidates.append(pair)
    values, vectors = np.linalg.eigh(block)
    bound = max(float(np.abs(values).max()), np.finfo(np.float64).tiny)
    generator = np.random.default_rng(_SEED)
    starts = [np.maximum(vectors[:, 0], 0.0), np.maximum(-vectors[:, 0], 0.0), np.abs(vectors[:, 0])]
    starts += [np.abs(generator.standard_normal(flat.size)) for _ in range(_RANDOM_STARTS)]
    candidates += [
        sign * vectors[:, k] for k in np.flatnonzero(values <= 1e-12 * bound) for sign in (1.0, -1.0)
    ]
    candidates += [_power(block, start, bound) for start in starts if start.any()]
    for z in candidates:
        if z.min() < -1e-12:
            continue
        ray = np.zeros(problem.size)
        ray[flat] = p * np.maximum(z, 0.0)
        if falls_along(problem, ray):
            return True
    return False


def _power(block: np.ndarray, z: np.ndarray, bound: float) -> np.ndarray:
    """Minimise ``zᵀ block z`` over z ≥ 0, ‖z‖ = 1 by projected power iterations on ``bound − block``."""
    for _ in range(_POWER_STEPS):
        following = np.maximum(bound * z - block @ z, 0.0)
        length = float(np.linalg.norm(following))
        if length == 0.0:
            break
        following /= length
        if np.abs(following - z).max() <= 1e-12:
            break
        z = following
    return z
