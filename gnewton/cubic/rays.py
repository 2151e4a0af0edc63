"""Directions z ≥ 0 along which the model has no cubic term and decreases without bound."""

from __future__ import annotations

import numpy as np

from gnewton.cubic.model import CubicModel

_SEED = 0
_ROUNDING = 1e-12
_RANDOM_STARTS = 8
_POWER_STEPS = 300


def falls_along(model: CubicModel, x: np.ndarray) -> bool:
    """Whether ``x ≥ 0``, with the groups that have a cubic term left out, is a ray without a lower bound.

    That is, z = x there, 0 elsewhere, has ``zᵀHz < 0``; or ``zᵀHz = 0`` within rounding, and either the
    gradient pulls along it or some other group, made positive, would (``(Hz)_s < 0``).
    """
    z = np.where(model.weights == 0.0, x, 0.0)
    if not z.any() or not np.isfinite(z).all():
        return False
    z = z / z.max()
    bent = model.hessian @ z
    size = np.abs(model.hessian) @ z
    curvature, noise = float(z @ bent), _ROUNDING * float(z @ size)
    if curvature < -noise:
        return True
    pull = float(model.gradient @ z)
    pulled = pull > _ROUNDING * float(np.abs(model.gradient) @ z)
    return curvature <= noise and (pulled or bool((bent < -1e-8 * size).any()))


def falls_forever(model: CubicModel, units: np.ndarray) -> bool:
    """Whether a direction z ≥ 0 without cubic term and with ``zᵀHz < 0`` is found: a proof of unboundedness.

    Tries single groups, pairs, and projected power iterations from several starts. Deciding that no such
    direction exists is NP-hard in general (Murty & Kabadi 1987).
    """
    flat = np.flatnonzero(model.weights == 0.0)
    p = 1.0 / np.sqrt(units[flat])
    block = model.hessian[np.ix_(flat, flat)] * p[:, None] * p[None, :]
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
        ray = np.zeros(model.size)
        ray[flat] = p * np.maximum(z, 0.0)
        if falls_along(model, ray):
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
