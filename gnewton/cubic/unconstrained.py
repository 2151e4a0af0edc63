"""The global minimiser without sign constraints, in scaled variables; flat directions are taken out first."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from scipy.linalg import lapack

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


_COMPATIBLE = 1e-10


@dataclass(frozen=True)
class Reduction:
    """A model without flat directions, and the map back to the full model.

    Attributes:
        model: the model on the remaining variables.
        basis: shape (S, S'); scaled variables of the full model are ``basis @ x``. None where nothing was
            removed.
    """

    model: CubicModel
    basis: np.ndarray | None

    def back(self, x: np.ndarray) -> np.ndarray:
        """Variables of the full model."""
        if self.basis is None:
            return x
        return self.basis @ x


def without_flat_directions(model: CubicModel) -> Reduction | None:
    """Remove the directions along which the model is constant; None where it has no lower bound.

    Let Z be the groups with d = 0. The model is quadratic along them, so it is bounded below if H_ZZ is
    positive definite. If H_ZZ is only semidefinite, every z with H_ZZ z = 0 must also leave the gradient
    (gᵀz = 0) and the coupling (H_RZ z = 0) at zero. Then the model is constant along z, and the minimiser
    without a component along z is taken. All conditions are tested up to rounding, in units in which H_ZZ
    has a unit diagonal.
    """
    if model.weights.all():
        return Reduction(model, None)
    free = np.flatnonzero(model.weights == 0.0)
    diagonal = model.diagonal[free]
    if (diagonal < 0.0).any():
        return None
    dead = free[diagonal == 0.0]
    if model.hessian[dead].any() or model.gradient[dead].any():
        return None
    kept = np.setdiff1d(np.arange(model.size), dead)
    reduced = model if dead.size == 0 else _restricted(model, kept)
    outer = None if dead.size == 0 else np.eye(model.size)[:, kept]
    free = np.flatnonzero(reduced.weights == 0.0)
    if free.size == 0 or _safely_definite(reduced.hessian[np.ix_(free, free)]):
        return Reduction(reduced, outer)
    basis = _curved_basis(reduced, free)
    if basis is None:
        return None
    rotated = basis.T @ reduced.hessian @ basis
    reduced = replace(
        reduced,
        hessian=0.5 * (rotated + rotated.T),
        gradient=reduced.gradient @ basis,
        weights=_diagonal_weights(reduced.weights, basis),
    )
    return Reduction(reduced, basis if outer is None else outer @ basis)


def _restricted(model: CubicModel, kept: np.ndarray) -> CubicModel:
    return CubicModel(
        hessian=model.hessian[np.ix_(kept, kept)],
        gradient=model.gradient[kept],
        weights=model.weights[kept],
        sigma=model.sigma,
        exponents=model.exponents[kept],
    )


def _diagonal_weights(weights: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """Weights of the rotated variables: the basis mixes groups of weight zero only."""
    return weights @ (basis != 0.0)


def _unit_diagonal(block: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    p = equilibration(np.diagonal(block))
    return block * p[:, None] * p[None, :], p


def _tolerance(size: int) -> float:
    return 16.0 * size * EPSILON


def _safely_definite(block: np.ndarray) -> bool:
    """Whether Cholesky succeeds on the scaled block with its rounding error subtracted."""
    matrix, _ = _unit_diagonal(block)
    matrix.flat[:: len(matrix) + 1] -= 2.0 * _tolerance(len(matrix))
    _, info = lapack.dpotrf(matrix, lower=1, overwrite_a=1)
    return bool(info == 0)


def _curved_basis(model: CubicModel, free: np.ndarray) -> np.ndarray | None:
    """A basis of the variables without the null space of H_ZZ; None where the model varies along it."""
    matrix, p = _unit_diagonal(model.hessian[np.ix_(free, free)])
    values, vectors = np.linalg.eigh(matrix)
    tolerance = 4.0 * _tolerance(free.size)
    if values[0] < -tolerance:
        return None
    null = p[:, None] * vectors[:, values <= tolerance]
    coupled = model.hessian[:, free]
    moved = np.abs(coupled @ null)
    allowed = _COMPATIBLE * np.linalg.norm(coupled * p[None, :], axis=1)[:, None]
    pulled = np.abs(model.gradient[free] @ null)
    bearable = _COMPATIBLE * float(np.linalg.norm(model.gradient[free] * p))
    rest = np.setdiff1d(np.arange(model.size), free)
    if (moved[rest] > allowed[rest]).any() or (pulled > bearable).any():
        return None
    curved = p[:, None] * vectors[:, values > tolerance]
    basis = np.zeros((model.size, rest.size + curved.shape[1]))
    basis[rest, np.arange(rest.size)] = 1.0
    basis[free, rest.size :] = curved
    return basis
