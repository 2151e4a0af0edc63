"""The minimiser over rates that are not negative, with its KKT certificate."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from gnewton.cubic.certificate import curvature_margin, natural_residual
from gnewton.cubic.convex import curvature_units
from gnewton.cubic.descent import Descent, descend
from gnewton.cubic.problem import Problem
from gnewton.cubic.rays import falls_forever
from gnewton.cubic.solution import MARGIN_LIMIT, RESIDUAL_LIMIT, CubicStatus
from gnewton.cubic.trust import Candidate
from gnewton.cubic.unconstrained import semidefinite, unconstrained

_SEED = 0
_PRECISE = 1e-12


def nonnegative_minimiser(problem: Problem) -> Candidate | CubicStatus:
    """The minimiser of the model over x ≥ 0, or the best point of several starts.

    A KKT point x is global if ``M(r) ⪰ 0`` at its own ``r = ‖Dx‖``, even where H̄ is indefinite: as
    ``t³ ≥ (3/2) r t² − r³/2`` for t ≥ 0, the model lies above the convex quadratic with Hessian M(r), meets
    it at x, and has the same slope there. This is how a point is proved global; otherwise it is the lowest
    of the descents from several starts.
    """
    relaxed = unconstrained(problem)
    if isinstance(relaxed, Candidate) and relaxed.passes and (relaxed.x >= 0.0).all():
        return replace(relaxed, status=CubicStatus.NONNEGATIVE_GLOBAL)
    units = curvature_units(
        problem.hessian, problem.gradient, np.abs(problem.diagonal) + problem.sigma * problem.weights
    )
    watch = isinstance(relaxed, CubicStatus)
    if watch and falls_forever(problem, units):
        return CubicStatus.UNBOUNDED
    best: Descent | None = None
    for start in _starts(problem, relaxed, units):
        found = _on_its_face(problem, descend(problem, start, units, watch=watch))
        if found.endless:
            return CubicStatus.UNBOUNDED
        if best is None or _better(found, best):
            best = found
        margin, proved = _margin(problem, found, relaxed)
        if proved and found.residual <= RESIDUAL_LIMIT:
            return _candidate(found, CubicStatus.NONNEGATIVE_GLOBAL, margin)
    assert best is not None
    margin, _ = _margin(problem, best, relaxed)
    solved = best.residual <= RESIDUAL_LIMIT
    return _candidate(best, CubicStatus.NONNEGATIVE_LOCAL if solved else CubicStatus.UNCERTIFIED, margin)


def _on_its_face(problem: Problem, found: Descent) -> Descent:
    """Where a descent ends short of rounding: the minimiser over its positive variables, if it is better."""
    face = np.flatnonzero(found.x > 0.0)
    if found.endless or found.residual <= _PRECISE or face.size == 0:
        return found
    exact = unconstrained(
        Problem(
            problem.hessian[np.ix_(face, face)],
            problem.gradient[face],
            problem.weights[face],
            problem.sigma,
            problem.exponents[face],
        )
    )
    if isinstance(exact, CubicStatus) or not exact.passes or (exact.x < 0.0).any():
        return found
    x = np.zeros(problem.size)
    x[face] = exact.x
    better = Descent(x, problem.value(x), natural_residual(problem, x), found.iterations)
    return better if better.residual < found.residual else found


def _better(new: Descent, old: Descent) -> bool:
    solved = new.residual <= RESIDUAL_LIMIT, old.residual <= RESIDUAL_LIMIT
    return solved[0] if solved[0] != solved[1] else new.value < old.value


def _candidate(found: Descent, status: CubicStatus, margin: float) -> Candidate:
    return Candidate(found.x, status, found.residual, margin, found.iterations)


def _margin(problem: Problem, found: Descent, relaxed: Candidate | CubicStatus) -> tuple[float, bool]:
    """The curvature margin at a point, and whether ``M(r) ⪰ 0`` is proved."""
    r = problem.radius(found.x)
    if isinstance(relaxed, Candidate) and relaxed.passes:
        if relaxed.lowest is None:
            return relaxed.margin, True
        margin = curvature_margin(problem, r, relaxed.lowest)
        return margin, margin >= MARGIN_LIMIT
    return _scaled_margin(problem, r), semidefinite(problem, r)


def _scaled_margin(problem: Problem, r: float) -> float:
    """Smallest eigenvalue of M(r), in units in which every ``|H_ss| + σ r d_s²`` is one."""
    curvature = np.abs(problem.diagonal) + problem.sigma * r * problem.weights
    p = 1.0 / np.sqrt(curvature_units(problem.hessian, problem.gradient, curvature))
    matrix = problem.hessian * p[:, None] * p[None, :]
    matrix.flat[:: problem.size + 1] += problem.sigma * r * problem.weights * p * p
    return float(np.linalg.eigvalsh(matrix)[0])


def _starts(problem: Problem, relaxed: Candidate | CubicStatus, units: np.ndarray) -> list[np.ndarray]:
    """Starts of the descents: the clipped unconstrained minimiser, zero, single groups, random points."""
    size = problem.size
    starts = []
    if isinstance(relaxed, Candidate):
        starts += [np.maximum(relaxed.x, 0.0), np.abs(relaxed.x)]
    starts.append(np.zeros(size))
    length = 1.0
    if isinstance(relaxed, Candidate) and relaxed.x.any():
        length = float(np.linalg.norm(np.sqrt(units) * relaxed.x))
    starts += _single_groups(problem, 3)
    generator = np.random.default_rng(_SEED)
    for _ in range(6 if size <= 64 else 3 if size <= 256 else 1):
        point = np.maximum(generator.standard_normal(size), 0.0)
        starts.append(length * point / max(float(np.linalg.norm(point)), 1e-3) / np.sqrt(units))
    return [start for start in starts if np.isfinite(problem.value(start))]


def _single_groups(problem: Problem, count: int) -> list[np.ndarray]:
    """The best points with one positive entry each (closed form), lowest first."""
    h, g, c = problem.diagonal, problem.gradient, problem.sigma * problem.weights**1.5
    root = np.sqrt(np.maximum(h * h + 4.0 * c * g, 0.0))
    with np.errstate(divide="ignore", invalid="ignore"):
        step = np.where(h > 0.0, 2.0 * g / (h + root), (root - h) / (2.0 * c))
    step = np.where(np.isfinite(step), np.maximum(step, 0.0), 0.0)
    value = -g * step + 0.5 * h * step**2 + c / 3.0 * step**3
    order = [int(s) for s in np.argsort(value, kind="stable")[:count] if value[s] < 0.0]
    return [np.where(np.arange(problem.size) == s, step, 0.0) for s in order]
