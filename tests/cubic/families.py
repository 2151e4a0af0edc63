"""Random cubic models of every kind, each from a name and a seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator


@dataclass(frozen=True)
class Instance:
    hessian: np.ndarray
    gradient: np.ndarray
    third: np.ndarray
    damping: float

    @property
    def arguments(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
        return self.hessian, self.gradient, self.third, self.damping

    def rescaled(self, a: np.ndarray) -> Instance:
        """The same model after θ_s = a_s θ̃_s."""
        b = a * a
        return Instance(
            self.hessian * b[:, None] * b[None, :], self.gradient * b, self.third * b**3, self.damping
        )


def symmetric(rng: Generator, size: int) -> np.ndarray:
    a = rng.standard_normal((size, size))
    return a + a.T


def gaussian(rng: Generator, size: int) -> Instance:
    return Instance(
        symmetric(rng, size), rng.standard_normal(size), rng.standard_normal(size), 10 ** rng.uniform(-3, 3)
    )


def convex(rng: Generator, size: int) -> Instance:
    base = gaussian(rng, size)
    return Instance(base.hessian @ base.hessian, *base.arguments[1:])


def low_rank(rng: Generator, size: int) -> Instance:
    a = rng.standard_normal((size, (size + 1) // 2))
    return Instance(a @ a.T, *gaussian(rng, size).arguments[1:])


def graded_third(rng: Generator, size: int) -> Instance:
    """d spans 16 orders of magnitude."""
    base = gaussian(rng, size)
    return Instance(base.hessian, base.gradient, 10 ** rng.uniform(-24, 24, size), base.damping)


def graded(rng: Generator, size: int) -> Instance:
    """Everything spans many orders of magnitude, independently."""
    base = gaussian(rng, size)
    a = 10 ** rng.uniform(-7, 7, size)
    return Instance(
        base.hessian * a[:, None] * a[None, :],
        base.gradient * 10 ** rng.uniform(-15, 15, size),
        10 ** rng.uniform(-24, 24, size),
        10 ** rng.uniform(-10, 10),
    )


def extreme_scale(rng: Generator, size: int) -> Instance:
    """Whole inputs multiplied by 1e-30 … 1e30."""
    base = gaussian(rng, size)
    h, g, t, c = 10 ** rng.uniform(-30, 30, 4)
    return Instance(base.hessian * h, base.gradient * g, base.third * t, float(c))


def hard(rng: Generator, size: int) -> Instance:
    """b orthogonal to the lowest eigenvector and small, up to rounding."""
    return _near_hard(rng, size, 0.0)


def near_hard(rng: Generator, size: int) -> Instance:
    """b nearly orthogonal to the lowest eigenvector."""
    return _near_hard(rng, size, 10 ** rng.uniform(-16, -1))


def _near_hard(rng: Generator, size: int, leak: float) -> Instance:
    d = 10 ** rng.uniform(-1, 1, size)
    k = symmetric(rng, size) - 2.0 * np.eye(size)
    q = np.linalg.eigh(k)[1]
    b = (
        q[:, 1:] @ rng.standard_normal(size - 1) * 10 ** rng.uniform(-3, 0)
        + leak * rng.choice([-1, 1]) * q[:, 0]
    )
    return Instance(k * d[:, None] * d[None, :], b * d, d**3, 10 ** rng.uniform(-2, 2))


def graded_hard(rng: Generator, size: int) -> Instance:
    """Near-hard with d over 16 orders of magnitude, in exactly representable numbers."""
    d = 2.0 ** rng.integers(-26, 27, size)
    k = symmetric(rng, size) - 2.0 * np.eye(size)
    q = np.linalg.eigh(k)[1]
    b = q[:, 1:] @ rng.standard_normal(size - 1) * 1e-2 + rng.choice([0.0, 1e-12, 1e-6]) * q[:, 0]
    return Instance(k * d[:, None] * d[None, :], b * d, d**3, 2.0)


def clustered(rng: Generator, size: int) -> Instance:
    """Repeated and nearly repeated lowest eigenvalues."""
    q = np.linalg.qr(rng.standard_normal((size, size)))[0]
    gaps = np.where(rng.random(size) < 0.6, 10 ** rng.uniform(-16, -6, size), rng.uniform(0, 3, size))
    k = (q * (gaps - 1.0)) @ q.T
    b = rng.standard_normal(size) * rng.choice([0.0, 1e-14, 1e-8, 1.0])
    return Instance((k + k.T) / 2, b, np.ones(size), 10 ** rng.uniform(-2, 2))


def some_zero_third(rng: Generator, size: int) -> Instance:
    """Zero thirds with a positive definite block, whose Schur complement is often indefinite."""
    base = gaussian(rng, size)
    zero = rng.random(size) < 0.5
    boost = np.where(zero, 3.0 * size * 10 ** rng.uniform(-0.5, 2), 0.0)
    return Instance(
        base.hessian + np.diag(boost), base.gradient, np.where(zero, 0.0, base.third), base.damping
    )


def all_zero_third(rng: Generator, size: int) -> Instance:
    base = convex(rng, size)
    return Instance(base.hessian + np.eye(size), base.gradient, np.zeros(size), base.damping)


def unbounded(rng: Generator, size: int) -> Instance:
    """A group without cubic term and with negative curvature."""
    base = gaussian(rng, size)
    third, hessian = base.third.copy(), base.hessian.copy()
    s = rng.integers(size)
    third[s], hessian[s, s] = 0.0, -1.0 - abs(hessian[s, s])
    return Instance(hessian, base.gradient, third, base.damping)


def sparse(rng: Generator, size: int) -> Instance:
    """Exact zeros everywhere but in d."""
    base = gaussian(rng, size)
    keep = np.triu(rng.random((size, size)) < 0.4)
    return Instance(
        base.hessian * (keep | keep.T),
        base.gradient * (rng.random(size) < 0.5),
        10 ** rng.uniform(-6, 6, size),
        base.damping,
    )


def no_gradient(rng: Generator, size: int) -> Instance:
    base = gaussian(rng, size)
    return Instance(base.hessian, np.zeros(size), base.third, base.damping)


def small_integers(rng: Generator, size: int) -> Instance:
    """Entries −2 … 2: exact cancellations, singular blocks, dead groups."""
    h = np.triu(rng.integers(-1, 3, (size, size)))
    hessian = np.asarray(h + np.triu(h, 1).T, dtype=np.float64)
    return Instance(
        hessian,
        rng.integers(-1, 2, size).astype(np.float64),
        rng.integers(0, 3, size).astype(np.float64),
        float(rng.integers(0, 3)),
    )


def weak_coupling(rng: Generator, size: int) -> Instance:
    """Nearly diagonal, with off-diagonal entries of any tiny size."""
    base = gaussian(rng, size)
    off = base.hessian * 10 ** rng.uniform(-18, 0)
    np.fill_diagonal(off, np.diagonal(base.hessian))
    return Instance(off, base.gradient, base.third, base.damping)


def stiff_force(rng: Generator, size: int) -> Instance:
    """The groups with the largest D⁻¹HD⁻¹ also carry the radius."""
    base = convex(rng, size)
    k = 10 ** rng.uniform(0, 10, size)
    return Instance(
        base.hessian * k[:, None] * k[None, :], rng.standard_normal(size) * k * k, np.ones(size), base.damping
    )


def rounding_singular(rng: Generator, size: int) -> Instance:
    """Singular up to rounding, with a gradient in its range, or none: κ_min is rounding noise."""
    base = low_rank(rng, size)
    gradient = base.hessian @ rng.standard_normal(size) * rng.choice([0.0, 1e-20, 1e-8, 1.0])
    return Instance(base.hessian, gradient, base.third, base.damping)


def nearly_flat_block(rng: Generator, size: int) -> Instance:
    """The block without cubic term is ill-conditioned; its Schur complement can be hugely negative."""
    base = some_zero_third(rng, size)
    zero = base.third == 0.0
    h = base.hessian.copy()
    block = rng.standard_normal((size, int(zero.sum()))) if zero.any() else np.zeros((size, 0))
    h[np.ix_(zero, zero)] = block.T @ block + 10 ** rng.uniform(-10, 0) * np.eye(int(zero.sum()))
    return Instance(h, base.gradient, base.third, base.damping)


def semidefinite_block(rng: Generator, size: int) -> Instance:
    """H_ZZ singular in exact integers, compatible with the gradient and the coupling."""
    a = rng.integers(-2, 3, (size, max(1, size // 2))).astype(np.float64)
    hessian = a @ np.diag(rng.integers(1, 4, a.shape[1]).astype(np.float64)) @ a.T
    third = np.where(rng.random(size) < 0.7, 0.0, rng.standard_normal(size))
    return Instance(hessian, hessian @ rng.integers(-2, 3, size), third, 10 ** rng.uniform(-3, 3))


Family = Callable[[Generator, int], Instance]

FAMILIES: dict[str, Family] = {
    family.__name__: family
    for family in (
        gaussian,
        convex,
        low_rank,
        graded_third,
        graded,
        extreme_scale,
        hard,
        near_hard,
        graded_hard,
        clustered,
        some_zero_third,
        all_zero_third,
        unbounded,
        sparse,
        no_gradient,
        small_integers,
        weak_coupling,
        stiff_force,
        rounding_singular,
        nearly_flat_block,
        semidefinite_block,
    )
}


def instance(kind: str, seed: int, size: int) -> Instance:
    return FAMILIES[kind](np.random.default_rng([seed, size]), size)
