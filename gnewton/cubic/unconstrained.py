"""The global minimiser without sign constraints, in scaled variables."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.linalg import lapack

from gnewton.cubic.certificate import curvature_margin, residual
from gnewton.cubic.flat import without_flat_directions
from gnewton.cubic.problem import EPSILON, Problem, equilibration
from gnewton.cubic.refine import minimiser
from gnewton.cubic.secular import solve_secular
from gnewton.cubic.single import single_candidate
from gnewton.cubic.solution import MARGIN_LIMIT, CubicStatus
from gnewton.cubic.spectrum import Spectrum, factorise, find_shift, plain_spectrum, shifted_spectrum
from gnewton.cubic.tridiagonal import quick_candidate
from gnewton.cubic.trust import TRUSTED_NOISE, TRUSTED_RESIDUAL, Candidate

_RECENTRINGS = 4


def failed(problem: Problem) -> Candidate:
    """What stands for a solve that found nothing: a limit of float64, not of the model."""
    return Candidate(np.zeros(problem.size), CubicStatus.UNCERTIFIED, np.inf, -np.inf, 0)


def unconstrained(problem: Problem) -> Candidate | CubicStatus:
    """The certified minimiser in scaled variables, or the status that says why there is none."""
    if problem.weights.all():
        return _solved(problem)
    reduction = without_flat_directions(problem)
    if reduction is None:
        return CubicStatus.UNBOUNDED
    core = reduction.problem
    if core.size == 0:
        return Candidate(np.zeros(problem.size), CubicStatus.QUADRATIC, 0.0, 0.0, 0)
    candidate = _solved(core)
    if reduction.basis is None:
        return candidate
    x = reduction.back(candidate.x)
    lowest = None if candidate.lowest is None else reduction.back(candidate.lowest)
    return replace(candidate, x=x, residual=residual(problem, x), lowest=lowest).judged()


def _solved(problem: Problem) -> Candidate:
    """The candidate of a model without flat directions."""
    try:
        return _cubic(problem) if problem.weights.any() else _quadratic(problem)
    except np.linalg.LinAlgError:
        return failed(problem)


def _quadratic(problem: Problem) -> Candidate:
    """``η = H̄⁻¹ḡ`` for positive definite H̄, refined; the margin is that of H̄ scaled to a unit diagonal."""
    factor = factorise(problem, 0.0)
    if factor is None:
        return failed(problem)
    x, best = factor.solution, residual(problem, factor.solution)
    for _ in range(3):
        trial = x - factor.solve(problem.slope(x, 0.0))
        now = residual(problem, trial)
        if not now < best:
            break
        x, best = trial, now
    p = equilibration(problem.diagonal)
    margin = float(np.linalg.eigvalsh(problem.hessian * p[:, None] * p[None, :])[0])
    return Candidate(x, CubicStatus.QUADRATIC, best, margin, 1).judged()


def _cubic(problem: Problem) -> Candidate:
    """Cases with a cubic term.

    A formula for one group. One tridiagonal reduction of K in the common case, its eigendecomposition near
    the hard case, a shifted one where K is graded or some d are zero: each hands out only what it is accurate
    enough for.
    """
    candidate: Candidate | None = None
    if problem.weights.all():
        quick = single_candidate(problem) if problem.size == 1 else quick_candidate(problem)
        if quick is not None:
            return quick
        candidate, trusted = _from(problem, plain_spectrum(problem))
        if trusted:
            return candidate
    start = 1.0
    for _ in range(_RECENTRINGS):
        factor = find_shift(problem, start)
        if factor is None:
            break
        latest, trusted = _from(problem, shifted_spectrum(problem, factor))
        if trusted:
            return latest
        if candidate is None or _rank(latest) >= _rank(candidate):
            candidate = latest
        start = max(2.0 * problem.radius(latest.x), 0.5 * factor.radius)
    if candidate is None:
        return failed(problem)
    if not semidefinite(problem, problem.radius(candidate.x)):
        candidate = replace(candidate, margin=-np.inf)
    return candidate.judged()


def _rank(candidate: Candidate) -> tuple[bool, float]:
    return candidate.passes, -candidate.residual


def _from(problem: Problem, spectrum: Spectrum) -> tuple[Candidate, bool]:
    """The candidate of one spectrum, and whether rounding in the spectrum cannot matter to it."""
    root = solve_secular(spectrum.alpha, spectrum.beta, spectrum.omega)
    x, hard = minimiser(problem, spectrum, root)
    r = problem.radius(x)
    with np.errstate(divide="ignore", invalid="ignore"):
        lowest = int(np.argmin(np.where(spectrum.beta > 0.0, spectrum.alpha / spectrum.beta, np.inf)))
    unit = np.zeros(problem.size)
    unit[lowest] = 1.0
    vector = spectrum.up(unit)
    margin = curvature_margin(problem, r, vector)
    status = CubicStatus.HARD_CASE if hard else CubicStatus.INTERIOR
    candidate = Candidate(x, status, residual(problem, x), margin, root.iterations, vector)
    reach = abs(float(spectrum.alpha[lowest])) + float(spectrum.beta[lowest]) * r
    precise = spectrum.noise <= TRUSTED_NOISE * reach
    return candidate, precise and candidate.passes and candidate.residual <= TRUSTED_RESIDUAL


def semidefinite(problem: Problem, r: float) -> bool:
    """Whether Cholesky succeeds on M(r) raised by the tolerance of the certificate and its own rounding."""
    cubic = problem.sigma * r * problem.weights
    diagonal = problem.diagonal + (1.0 - MARGIN_LIMIT) * cubic
    diagonal = diagonal + 16.0 * problem.size * EPSILON * (np.abs(problem.diagonal) + cubic)
    null = (diagonal == 0.0) & ~problem.hessian.any(axis=1)
    diagonal = np.where(null, 1.0, diagonal)
    if not (diagonal > 0.0).all():
        return False
    p = equilibration(diagonal)
    matrix = problem.hessian * p[:, None] * p[None, :]
    matrix.flat[:: problem.size + 1] = diagonal * p * p
    if not np.isfinite(matrix).all():
        return False
    _, info = lapack.dpotrf(matrix, lower=1, overwrite_a=1)
    return bool(info == 0)
