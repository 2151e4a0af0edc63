"""The minimiser over non-negative rates, with its KKT certificate."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from gnewton.cubic.descent import Descent, descend, falls_forever
from gnewton.cubic.model import CubicModel, curvature_units
from gnewton.cubic.solution import (
    MARGIN_LIMIT,
    RESIDUAL_LIMIT,
    Candidate,
    CubicStatus,
    curvature_margin,
    natural_residual,
)
from gnewton.cubic.unconstrained import semidefinite, unconstrained

_SEED = 0
_PRECISE = 1e-12


def nonnegative_minimiser(model: CubicModel) -> Candidate | CubicStatus:
    """The minimiser of the model over x ≥ 0, or the best point of several starts.

    A KKT point x is global if ``M(r) ⪰ 0`` at its own ``r = ‖Dx‖``, even where H̄ is indefinite: as
    ``t³ ≥ (3/2) r t² − r³/2`` for t ≥ 0, the model lies above the convex quadratic with Hessian M(r), meets
    it at x, and has the same slope there. This proves a point global. Without a proof, the result is the
    lowest of the descents from several starts.
    """
    relaxed = unconstrained(model)
    if isinstance(relaxed, Candidate) and relaxed.passes and (relaxed.x >= 0.0).all():
        return replace(relaxed, status=CubicStatus.NONNEGATIVE_GLOBAL)
    units = curvature_units(
        model.hessian, model.gradient, np.abs(model.diagonal) + model.sigma * model.weights
    )
    watch = isinstance(relaxed, CubicStatus)
    if watch and falls_forever(model, units):
        return CubicStatus.UNBOUNDED
    best: Descent | None = None
    for start in _starts(model, relaxed, units):
        descent = _on_its_face(model, descend(model, start, units, watch=watch))
        if descent.endless:
            return CubicStatus.UNBOUNDED
        if best is None or _better(descent, best):
            best = descent
        margin, proved = _margin(model, descent, relaxed)
        if proved and descent.residual <= RESIDUAL_LIMIT:
            return _candidate(descent, CubicStatus.NONNEGATIVE_GLOBAL, margin)
    assert best is not None
    margin, _ = _margin(model, best, relaxed)
    solved = best.residual <= RESIDUAL_LIMIT
    return _candidate(best, CubicStatus.NONNEGATIVE_LOCAL if solved else CubicStatus.UNCERTIFIED, margin)


def _on_its_face(model: CubicModel, descent: Descent) -> Descent:
    """Where a descent stops above rounding: the minimiser over its positive variables, if that is better."""
    face = np.flatnonzero(descent.x > 0.0)
    if descent.endless or descent.residual <= _PRECISE or face.size == 0:
        return descent
    exact = unconstrained(
        CubicModel(
            model.hessian[np.ix_(face, face)],
            model.gradient[face],
            model.weights[face],
            model.sigma,
            model.exponents[face],
        )
    )
    if isinstance(exact, CubicStatus) or not exact.passes or (exact.x < 0.0).any():
        return descent
    x = np.zeros(model.size)
    x[face] = exact.x
    better = Descent(x, model.value(x), natural_residual(model, x), descent.iterations)
    return better if better.residual < descent.residual else descent


def _better(new: Descent, old: Descent) -> bool:
    solved = new.residual <= RESIDUAL_LIMIT, old.residual <= RESIDUAL_LIMIT
    return solved[0] if solved[0] != solved[1] else new.value < old.value


def _candidate(descent: Descent, status: CubicStatus, margin: float) -> Candidate:
    return Candidate(descent.x, status, descent.residual, margin, descent.iterations)


def _margin(model: CubicModel, descent: Descent, relaxed: Candidate | CubicStatus) -> tuple[float, bool]:
    """The curvature margin at a point, and whether ``M(r) ⪰ 0`` is proved."""
    r = model.radius(descent.x)
    if isinstance(relaxed, Candidate) and relaxed.passes:
        if relaxed.lowest is None:
            return relaxed.margin, True
        margin = curvature_margin(model, r, relaxed.lowest)
        return margin, margin >= MARGIN_LIMIT
    return _scaled_margin(model, r), semidefinite(model, r)


def _scaled_margin(model: CubicModel, r: float) -> float:
    """Smallest eigenvalue of M(r), in units in which every ``|H_ss| + σ r d_s²`` is one."""
    curvature = np.abs(model.diagonal) + model.sigma * r * model.weights
    p = 1.0 / np.sqrt(curvature_units(model.hessian, model.gradient, curvature))
    matrix = model.hessian * p[:, None] * p[None, :]
    matrix.flat[:: model.size + 1] += model.sigma * r * model.weights * p * p
    return float(np.linalg.eigvalsh(matrix)[0])


def _starts(model: CubicModel, relaxed: Candidate | CubicStatus, units: np.ndarray) -> list[np.ndarray]:
    """Starts of the descents: the clipped unconstrained minimiser, zero, single groups, random points."""
    size = model.size
    starts = []
    if isinstance(relaxed, Candidate):
        starts += [np.maximum(relaxed.x, 0.0), np.abs(relaxed.x)]
    starts.append(np.zeros(size))
    length = 1.0
    if isinstance(relaxed, Candidate) and relaxed.x.any():
        length = float(np.linalg.norm(np.sqrt(units) * relaxed.x))
    starts += _single_groups(model, 3)
    generator = np.random.default_rng(_SEED)
    for _ in range(6 if size <= 64 else 3 if size <= 256 else 1):
        point = np.maximum(generator.standard_normal(size), 0.0)
        starts.append(length * point / max(float(np.linalg.norm(point)), 1e-3) / np.sqrt(units))
    return [start for start in starts if np.isfinite(model.value(start))]


def _single_groups(model: CubicModel, count: int) -> list[np.ndarray]:
    """The best points with one positive entry each (closed form), lowest first."""
    h, g, c = model.diagonal, model.gradient, model.sigma * model.weights**1.5
    root = np.sqrt(np.maximum(h * h + 4.0 * c * g, 0.0))
    with np.errstate(divide="ignore", invalid="ignore"):
        step = np.where(h > 0.0, 2.0 * g / (h + root), (root - h) / (2.0 * c))
    step = np.where(np.isfinite(step), np.maximum(step, 0.0), 0.0)
    value = -g * step + 0.5 * h * step**2 + c / 3.0 * step**3
    order = [int(s) for s in np.argsort(value, kind="stable")[:count] if value[s] < 0.0]
    return [np.where(np.arange(model.size) == s, step, 0.0) for s in order]
