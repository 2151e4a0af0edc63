"""What can be read from a summary: rates, scaled Hessian, spectrum, mass off the diagonal. All in numpy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gnewton.cubic import solve_cubic

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class RateSet:
    """Rates of all groups by one rule.

    Attributes:
        name: of the rule.
        values: η, shape (S,); NaN where the rule has none.
        status: how the solve ended, see :class:`gnewton.cubic.CubicStatus`.
    """

    name: str
    values: Floats
    status: str


def rate_sets(gradient: Floats, hessian: Floats, third: Floats, internal_damping: float) -> list[RateSet]:
    """Rates with the cubic term, without it, and of each group as if it moved alone.

    - ``cubic``: the global minimiser of the cubic model; NaN where it has none.
    - ``newton``: H̄⁻¹ḡ (least squares where H̄ is singular), the stationary point of the quadratic model; the
      status "unbounded" says that it is no minimum.
    - ``alone``: ḡ_s/H̄_ss, the exact line search of a single group; NaN where H̄_ss <= 0.
    """
    cubic = solve_cubic(hessian, gradient, third, internal_damping)
    values = np.asarray(cubic.rates, dtype=float)
    bare = solve_cubic(hessian, gradient, None, 0.0)
    stationary = np.asarray(bare.rates, dtype=float) if bare.bounded else _stationary(gradient, hessian)
    diagonal = hessian.diagonal()
    convex = diagonal > 0
    alone = np.where(convex, gradient / np.where(convex, diagonal, 1.0), np.nan)
    return [
        RateSet("cubic", values if cubic.bounded else np.full_like(values, np.nan), str(cubic.status)),
        RateSet("newton", stationary, str(bare.status)),
        RateSet("alone", alone, "quadratic" if convex.all() else "unbounded"),
    ]


def _stationary(gradient: Floats, hessian: Floats) -> Floats:
    """H̄⁻¹ḡ in units in which the diagonal is one, so that groups of any scale count alike."""
    unit = _unit(hessian)
    solved = np.linalg.lstsq(hessian / np.outer(unit, unit), gradient / unit, rcond=None)[0]
    return np.asarray(solved, dtype=np.float64) / unit


def correlation(hessian: Floats) -> Floats:
    """H̄_st / √|H̄_ss H̄_tt|: unchanged when groups are rescaled; 0 where a diagonal entry is 0.

    Entries lie in [−1, 1] where H̄ is positive semidefinite, and may not where it is not.
    """
    unit = np.sqrt(np.abs(hessian.diagonal()))
    product = np.outer(unit, unit)
    return np.divide(hessian, product, out=np.zeros_like(hessian), where=product > 0)


def _unit(hessian: Floats) -> Floats:
    unit = np.sqrt(np.abs(hessian.diagonal()))
    return np.where(unit > 0, unit, 1.0)


def per_length(hessian: Floats, norms: Floats) -> Floats:
    """H̄_st / (n_s n_t), the curvature along directions of length one; 0 where the direction vanishes."""
    product = np.outer(norms, norms)
    return np.divide(hessian, product, out=np.zeros_like(hessian), where=product > 0)


def eigenvalues(matrix: Floats) -> Floats:
    """Ascending eigenvalues of a symmetric matrix."""
    return np.asarray(np.linalg.eigvalsh(matrix), dtype=np.float64)


@dataclass(frozen=True)
class Distance:
    """The entries H̄_st, s ≠ t, of groups whose layers are ``layers`` apart.

    Attributes:
        layers: |depth_s − depth_t|.
        entries: how many, both (s, t) and (t, s) counted.
        share: of Σ|H̄_st| over the whole matrix.
        scaled_share: the same of the scaled Hessian, see :func:`correlation`.
        scaled_mean: mean size of its entries.
    """

    layers: int
    entries: int
    share: float
    scaled_share: float
    scaled_mean: float


def mass_by_distance(hessian: Floats, depths: Sequence[int]) -> list[Distance]:
    """Where the mass of a Hessian lies off its diagonal, by the distance between the layers of the groups.

    What the shares lack to one lies on the diagonal.

    Args:
        hessian: H̄, shape (S, S).
        depths: the layer of each group, counted from the input.
    """
    depth = np.asarray(depths)
    apart = np.abs(depth[:, None] - depth[None, :])
    off = ~np.eye(len(depth), dtype=bool)
    raw, scaled = np.abs(hessian), np.abs(correlation(hessian))
    found = []
    for layers in range(int(apart.max()) + 1):
        chosen = off & (apart == layers)
        if chosen.any():
            found.append(
                Distance(
                    layers,
                    int(chosen.sum()),
                    _share(raw, chosen),
                    _share(scaled, chosen),
                    float(scaled[chosen].mean()),
                )
            )
    return found


def _share(values: Floats, chosen: npt.NDArray[np.bool_]) -> float:
    total = float(values.sum())
    return float(values[chosen].sum()) / total if total > 0 else 0.0
