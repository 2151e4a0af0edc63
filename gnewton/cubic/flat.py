"""Groups without a cubic term: whether the model is bounded along them, and its flat directions."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.linalg import lapack

from gnewton.cubic.model import EPSILON, CubicModel, equilibration

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
