"""Groups without a cubic term: is the model bounded along them, and which directions are flat?"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.linalg import lapack

from gnewton.cubic.problem import EPSILON, Problem, equilibration

_COMPATIBLE = 1e-10


@dataclass(frozen=True)
class Reduction:
    """A model without flat directions, and the way back from it.

    Attributes:
        problem: the model on the remaining variables.
        basis: shape (S, S'); scaled variables of the full model are ``basis @ x``. None where nothing was
            removed.
    """

    problem: Problem
    basis: np.ndarray | None

    def back(self, x: np.ndarray) -> np.ndarray:
        """Variables of the full model."""
        if self.basis is None:
            return x
        out: np.ndarray = self.basis @ x
        return out


def without_flat_directions(problem: Problem) -> Reduction | None:
    """Remove the directions along which the model is constant; None where it has no lower bound.

    Let Z be the groups with d = 0. The model is quadratic along them, so it is bounded below if H_ZZ is
    positive definite. If H_ZZ is only semidefinite, every z with H_ZZ z = 0 must also leave the gradient
    (gᵀz = 0) and the coupling (H_RZ z = 0) at zero: then z changes nothing, and of all minimisers the one
    without a component along z is meant. All of it is decided in units in which H_ZZ has a unit diagonal,
    up to rounding.
    """
    if problem.weights.all():
        return Reduction(problem, None)
    free = np.flatnonzero(problem.weights == 0.0)
    diagonal = problem.diagonal[free]
    if (diagonal < 0.0).any():
        return None
    dead = free[diagonal == 0.0]
    if problem.hessian[dead].any() or problem.gradient[dead].any():
        return None
    kept = np.setdiff1d(np.arange(problem.size), dead)
    reduced = problem if dead.size == 0 else _restricted(problem, kept)
    outer = None if dead.size == 0 else np.eye(problem.size)[:, kept]
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


def _restricted(problem: Problem, kept: np.ndarray) -> Problem:
    return Problem(
        hessian=problem.hessian[np.ix_(kept, kept)],
        gradient=problem.gradient[kept],
        weights=problem.weights[kept],
        sigma=problem.sigma,
        exponents=problem.exponents[kept],
    )


def _diagonal_weights(weights: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """Weights of the rotated variables: the basis mixes groups of weight zero only."""
    out: np.ndarray = weights @ (basis != 0.0)
    return out


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


def _curved_basis(problem: Problem, free: np.ndarray) -> np.ndarray | None:
    """A basis of the variables without the null space of H_ZZ; None where that is not harmless."""
    matrix, p = _unit_diagonal(problem.hessian[np.ix_(free, free)])
    values, vectors = np.linalg.eigh(matrix)
    tolerance = 4.0 * _tolerance(free.size)
    if values[0] < -tolerance:
        return None
    null = p[:, None] * vectors[:, values <= tolerance]
    coupled = problem.hessian[:, free]
    moved = np.abs(coupled @ null)
    allowed = _COMPATIBLE * np.linalg.norm(coupled * p[None, :], axis=1)[:, None]
    pulled = np.abs(problem.gradient[free] @ null)
    bearable = _COMPATIBLE * float(np.linalg.norm(problem.gradient[free] * p))
    rest = np.setdiff1d(np.arange(problem.size), free)
    if (moved[rest] > allowed[rest]).any() or (pulled > bearable).any():
        return None
    curved = p[:, None] * vectors[:, values > tolerance]
    basis = np.zeros((problem.size, rest.size + curved.shape[1]))
    basis[rest, np.arange(rest.size)] = 1.0
    basis[free, rest.size :] = curved
    return basis
