"""Projected Newton method over x ≥ 0: descent to a KKT point, and rays along which the model is unbounded."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import lapack

from gnewton.cubic.model import CubicModel
from gnewton.cubic.solution import natural_residual

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


_MAX_ITERATIONS = 100
_DONE = 1e-14
_AT_LEAST = 2  # steps: the residual of some groups can hide that of much smaller ones
_SUFFICIENT = 1e-4
_SHIFTS = ((0.0, 8), (1e-6, 8), (1e-3, 8), (1e-1, 8), (10.0, 40))
_ESCAPES = 3
_SADDLE = -1e-7


@dataclass(frozen=True)
class Descent:
    """The result of a descent.

    Attributes:
        x: the last point, shape (S,), non-negative.
        value: the model there.
        residual: its KKT residual (:func:`~gnewton.cubic.solution.natural_residual`).
        iterations: Newton steps taken.
        endless: whether it met a direction along which the model decreases without bound.
    """

    x: np.ndarray
    value: float
    residual: float
    iterations: int
    endless: bool = False


def descend(model: CubicModel, x: np.ndarray, units: np.ndarray, *, watch: bool) -> Descent:
    """Projected Newton method with an ε-active set (Bertsekas 1982), with escapes from saddle points.

    Args:
        model: the cubic model.
        x: the start, shape (S,), non-negative.
        units: positive curvature units of the variables, shape (S,). They make the step independent of the
            scale of the groups.
        watch: whether to look for rays along which the model decreases without bound; not needed where it has
            a lower bound.
    """
    state = _newton(model, Descent(x, model.value(x), natural_residual(model, x), 0), units, watch)
    for _ in range(_ESCAPES):
        if state.endless:
            break
        elsewhere = _past_saddle(model, state, units)
        if elsewhere is None:
            break
        lower = _newton(model, elsewhere, units, watch)
        if not lower.value < state.value and not lower.endless:
            break
        state = lower
    return state


def _newton(model: CubicModel, state: Descent, units: np.ndarray, watch: bool) -> Descent:
    for step in range(1, _MAX_ITERATIONS + 1):
        if state.residual <= _DONE and step > _AT_LEAST:
            break
        following = _advance(model, state, units)
        if following is None:
            break
        state = following
        if watch and falls_along(model, state.x):
            return Descent(state.x, state.value, state.residual, step, endless=True)
    return state


def _advance(model: CubicModel, state: Descent, units: np.ndarray) -> Descent | None:
    """One step that decreases the model or, at the level of rounding, the residual; None if no step does."""
    x, r = state.x, model.radius(state.x)
    slope = model.slope(x, r)
    unit = np.sqrt(units + model.sigma * r * model.weights)
    z, force = unit * x, slope / unit
    reach = float(np.linalg.norm(np.minimum(z, force)))
    active = (z <= min(1e-3 * float(np.linalg.norm(z)), reach)) & (force > 0.0)
    free = np.flatnonzero(~active)
    for shift, halvings in _SHIFTS:
        step = -force
        if free.size:
            step[free] = -_newton_direction(model, x, r, free, unit, force[free], shift)
        lower = _line_search(model, state, slope, step / unit, halvings)
        if lower is not None:
            return lower
    return None


def _line_search(
    model: CubicModel, state: Descent, slope: np.ndarray, step: np.ndarray, halvings: int
) -> Descent | None:
    """Armijo's rule along the projected step; at the level of rounding, a smaller residual instead."""
    x, t = state.x, 1.0
    for _ in range(halvings):
        trial = np.maximum(x + t * step, 0.0)
        value = model.value(trial)
        expected = float(slope @ (trial - x))
        noise = 1e-14 * (float(np.abs(model.gradient) @ (trial + x)) + abs(state.value))
        gain = value - state.value
        if gain <= _SUFFICIENT * min(expected, 0.0) and gain < -noise:
            return Descent(trial, value, natural_residual(model, trial), state.iterations + 1)
        if abs(gain) <= 10.0 * noise:
            now = natural_residual(model, trial)
            if now < 0.9 * state.residual:
                return Descent(trial, value, now, state.iterations + 1)
        t *= 0.5
    return None


def _newton_direction(
    model: CubicModel,
    x: np.ndarray,
    r: float,
    free: np.ndarray,
    unit: np.ndarray,
    force: np.ndarray,
    shift: float,
) -> np.ndarray:
    """``(∇²m + τ)⁻¹∇m`` of the free variables in energy units, at the first definite τ ≥ shift."""
    matrix = face_hessian(model, x, r, free, unit)
    while True:
        trial = matrix.copy()
        trial.flat[:: free.size + 1] += shift
        lower, info = lapack.dpotrf(trial, lower=1, overwrite_a=1)
        if info == 0:
            half, _ = lapack.dtrtrs(lower, force, lower=1)
            whole, _ = lapack.dtrtrs(lower, half, lower=1, trans=1)
            if np.isfinite(whole).all():
                return whole
        if shift > 1e30 or not np.isfinite(matrix).all():
            return force
        shift = 1e-12 if shift == 0.0 else shift * 10.0 if shift >= 1e-3 else shift * 1e3


def face_hessian(
    model: CubicModel, x: np.ndarray, r: float, free: np.ndarray, unit: np.ndarray
) -> np.ndarray:
    """``∇²m = M(r) + (σ/r) D²x xᵀD²`` of the free variables, divided by their units."""
    matrix: np.ndarray = model.hessian[np.ix_(free, free)]
    if r > 0.0:
        lean = model.weights[free] * x[free]
        matrix = matrix + (model.sigma / r) * lean[:, None] * lean[None, :]
        matrix.flat[:: free.size + 1] += model.sigma * r * model.weights[free]
    return matrix / unit[free][:, None] / unit[free][None, :]


def _past_saddle(model: CubicModel, state: Descent, units: np.ndarray) -> Descent | None:
    """A lower point along negative curvature within the face of the positive variables."""
    x, r = state.x, model.radius(state.x)
    free = np.flatnonzero(x > 0.0)
    if free.size == 0:
        return None
    unit = np.sqrt(units + model.sigma * r * model.weights)
    values, vectors = np.linalg.eigh(face_hessian(model, x, r, free, unit))
    if values[0] >= _SADDLE:
        return None
    direction = np.zeros_like(x)
    direction[free] = vectors[:, 0] / unit[free]
    best = state
    for sign in (1.0, -1.0):
        against = sign * direction < 0.0
        limit = float((x[against] / np.abs(direction[against])).min(initial=np.inf))
        longest = min(limit, 1e3 * float(np.linalg.norm(unit * x)))
        for part in (1.0, 0.3, 0.1, 1e-2, 1e-3):
            trial = np.maximum(x + sign * part * longest * direction, 0.0)
            value = model.value(trial)
            if value < best.value:
                best = Descent(trial, value, natural_residual(model, trial), state.iterations)
    return best if best is not state else None
