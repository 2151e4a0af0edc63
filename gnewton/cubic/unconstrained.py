"""The global minimiser without sign constraints, in scaled variables."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from scipy.linalg import lapack

from gnewton.cubic.flat import without_flat_directions
from gnewton.cubic.model import EPSILON, CubicModel, equilibration
from gnewton.cubic.secular import minimiser, solve_secular
from gnewton.cubic.solution import (
    MARGIN_LIMIT,
    TRUSTED_NOISE,
    TRUSTED_RESIDUAL,
    Candidate,
    CubicStatus,
    curvature_margin,
    residual,
)
from gnewton.cubic.spectrum import Factor, Spectrum, factorise, find_shift, plain_spectrum, shifted_spectrum
from gnewton.cubic.tridiagonal import quick_candidate

_RECENTRINGS = 4
LARGE = 256  # groups from which on the smallest eigenvalue of a quadratic model is found by iteration


def failed(model: CubicModel) -> Candidate:
    """The candidate of a solve without result: a limit of float64, not of the model."""
    return Candidate(np.zeros(model.size), CubicStatus.UNCERTIFIED, np.inf, -np.inf, 0)


def unconstrained(model: CubicModel) -> Candidate | CubicStatus:
    """The certified minimiser in scaled variables, or the status that explains why there is none."""
    if model.weights.all():
        return _solved(model)
    reduction = without_flat_directions(model)
    if reduction is None:
        return CubicStatus.UNBOUNDED
    core = reduction.model
    if core.size == 0:
        return Candidate(np.zeros(model.size), CubicStatus.QUADRATIC, 0.0, 0.0, 0)
    candidate = _solved(core)
    if reduction.basis is None:
        return candidate
    x = reduction.back(candidate.x)
    lowest = None if candidate.lowest is None else reduction.back(candidate.lowest)
    return replace(candidate, x=x, residual=residual(model, x), lowest=lowest).judged()


def _solved(model: CubicModel) -> Candidate:
    """The candidate of a model without flat directions."""
    try:
        return _cubic(model) if model.weights.any() else _quadratic(model)
    except np.linalg.LinAlgError:
        return failed(model)


def _quadratic(model: CubicModel) -> Candidate:
    """``η = H̄⁻¹ḡ`` for positive definite H̄, refined; the margin is that of H̄ scaled to a unit diagonal."""
    factor = factorise(model, 0.0)
    if factor is None:
        return failed(model)
    x, best = factor.solution, residual(model, factor.solution)
    for _ in range(3):
        trial = x - factor.solve(model.slope(x, 0.0))
        now = residual(model, trial)
        if not now < best:
            break
        x, best = trial, now
    return Candidate(x, CubicStatus.QUADRATIC, best, _lowest(model, factor), 1).judged()


def _lowest(model: CubicModel, factor: Factor) -> float:
    """The smallest eigenvalue of a positive definite H̄ scaled to a unit diagonal.

    For many groups it is found to a hundredth, by Lanczos' method on the inverse: the Cholesky factor has
    shown that H̄ is positive definite, and all eigenvalues would cost more than everything else.
    """
    matrix = model.hessian * factor.scale[:, None] * factor.scale[None, :]
    if model.size <= LARGE:
        return float(np.linalg.eigvalsh(matrix)[0])

    from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh  # 0.1 s

    def inverse(v: np.ndarray) -> np.ndarray:
        half, _ = lapack.dtrtrs(factor.lower, v, lower=1)
        whole, _ = lapack.dtrtrs(factor.lower, half, lower=1, trans=1)
        return np.asarray(whole)

    operator = LinearOperator(matrix.shape, matvec=inverse, dtype=matrix.dtype)
    start = np.random.default_rng(0).standard_normal(model.size)
    try:
        (value,) = eigsh(operator, 1, which="LA", v0=start, tol=1e-2, return_eigenvectors=False)
    except ArpackError:
        return float(np.linalg.eigvalsh(matrix)[0])
    return 1.0 / float(value)


def _cubic(model: CubicModel) -> Candidate:
    """The candidate of a model with a cubic term.

    One group has a closed form. The common case takes one tridiagonal reduction of K, the neighbourhood of
    the hard case its eigendecomposition, and a graded K or zeros among the d a shifted one. Each returns a
    candidate only where it is accurate enough.
    """
    candidate: Candidate | None = None
    if model.weights.all():
        quick = single_candidate(model) if model.size == 1 else quick_candidate(model)
        if quick is not None:
            return quick
        candidate, trusted = _from(model, plain_spectrum(model))
        if trusted:
            return candidate
    start = 1.0
    for _ in range(_RECENTRINGS):
        factor = find_shift(model, start)
        if factor is None:
            break
        latest, trusted = _from(model, shifted_spectrum(model, factor))
        if trusted:
            return latest
        if candidate is None or _rank(latest) >= _rank(candidate):
            candidate = latest
        start = max(2.0 * model.radius(latest.x), 0.5 * factor.radius)
    if candidate is None:
        return failed(model)
    if not semidefinite(model, model.radius(candidate.x)):
        candidate = replace(candidate, margin=-np.inf)
    return candidate.judged()


def single_candidate(model: CubicModel) -> Candidate | None:
    """The minimiser of a model of one group with a cubic term; None where the gradient is zero.

    With ``κ = h/d²``, ``σr² + κr = |g|/d``. Both forms of its positive root add terms of equal sign.
    """
    gradient, d = float(model.gradient[0]), math.sqrt(model.weights[0])
    kappa, force = float(model.hessian[0, 0]) / d / d, abs(gradient) / d
    if force == 0.0:
        return None
    reach = abs(kappa) + math.hypot(kappa, 2.0 * math.sqrt(model.sigma) * math.sqrt(force))
    r = 2.0 * force / reach if kappa > 0.0 else reach / (2.0 * model.sigma)
    x, lowest = np.array([math.copysign(r / d, gradient)]), np.ones(1)
    margin = curvature_margin(model, model.radius(x), lowest)
    candidate = Candidate(x, CubicStatus.INTERIOR, residual(model, x), margin, 1, lowest)
    return candidate if candidate.passes and candidate.residual <= TRUSTED_RESIDUAL else None


def _rank(candidate: Candidate) -> tuple[bool, float]:
    return candidate.passes, -candidate.residual


def _from(model: CubicModel, spectrum: Spectrum) -> tuple[Candidate, bool]:
    """The candidate of one spectrum, and whether it is independent of rounding in the spectrum."""
    root = solve_secular(spectrum.alpha, spectrum.beta, spectrum.omega)
    x, hard = minimiser(model, spectrum, root)
    r = model.radius(x)
    with np.errstate(divide="ignore", invalid="ignore"):
        lowest = int(np.argmin(np.where(spectrum.beta > 0.0, spectrum.alpha / spectrum.beta, np.inf)))
    unit = np.zeros(model.size)
    unit[lowest] = 1.0
    vector = spectrum.up(unit)
    margin = curvature_margin(model, r, vector)
    status = CubicStatus.HARD_CASE if hard else CubicStatus.INTERIOR
    candidate = Candidate(x, status, residual(model, x), margin, root.iterations, vector)
    reach = abs(float(spectrum.alpha[lowest])) + float(spectrum.beta[lowest]) * r
    precise = spectrum.noise <= TRUSTED_NOISE * reach
    return candidate, precise and candidate.passes and candidate.residual <= TRUSTED_RESIDUAL


def semidefinite(model: CubicModel, r: float) -> bool:
    """Whether Cholesky succeeds on M(r) raised by the tolerance of the certificate and its own rounding."""
    cubic = model.sigma * r * model.weights
    diagonal = model.diagonal + (1.0 - MARGIN_LIMIT) * cubic
    diagonal = diagonal + 16.0 * model.size * EPSILON * (np.abs(model.diagonal) + cubic)
    null = (diagonal == 0.0) & ~model.hessian.any(axis=1)
    diagonal = np.where(null, 1.0, diagonal)
    if not (diagonal > 0.0).all():
        return False
    p = equilibration(diagonal)
    matrix = model.hessian * p[:, None] * p[None, :]
    matrix.flat[:: model.size + 1] = diagonal * p * p
    if not np.isfinite(matrix).all():
        return False
    _, info = lapack.dpotrf(matrix, lower=1, overwrite_a=1)
    return bool(info == 0)
