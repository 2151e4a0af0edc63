"""The structure of H̄: scaled forms, eigenvalues, and the mass off the diagonal by distance between layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import nn

from gnewton.partition import Partition
from gnewton.partition.schemes import by_layer

Floats = npt.NDArray[np.float64]


def correlation(hessian: Floats) -> Floats:
    """H̄_st / √|H̄_ss H̄_tt|, invariant to a rescaling of the groups; 0 where a diagonal entry is 0.

    Its entries lie in [−1, 1] if H̄ is positive semidefinite; otherwise they may exceed 1.
    """
    return per_length(hessian, np.sqrt(np.abs(hessian.diagonal())))


def per_length(hessian: Floats, norms: Floats) -> Floats:
    """H̄_st / (n_s n_t), the curvature along unit directions; 0 where the direction vanishes."""
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
        entries: their number; (s, t) and (t, s) both count.
        share: their share of Σ|H̄_st| over the whole matrix.
        scaled_share: the same for the scaled Hessian, see :func:`correlation`.
        scaled_mean: mean absolute value of the scaled entries.
    """

    layers: int
    entries: int
    share: float
    scaled_share: float
    scaled_mean: float


def mass_by_distance(hessian: Floats, depths: Sequence[int]) -> list[Distance]:
    """The mass of H̄ off its diagonal, by the distance between the layers of the groups.

    The shares and the diagonal add up to one.

    Args:
        hessian: H̄, shape (S, S).
        depths: the layer of each group, counted from the input.
    """
    depth = np.asarray(depths)
    distance = np.abs(depth[:, None] - depth[None, :])
    off_diagonal = ~np.eye(len(depth), dtype=bool)
    raw, scaled = np.abs(hessian), np.abs(correlation(hessian))
    rows = []
    for layers in range(int(distance.max()) + 1):
        mask = off_diagonal & (distance == layers)
        if mask.any():
            rows.append(
                Distance(
                    layers,
                    int(mask.sum()),
                    _share(raw, mask),
                    _share(scaled, mask),
                    float(scaled[mask].mean()),
                )
            )
    return rows


def _share(values: Floats, mask: npt.NDArray[np.bool_]) -> float:
    total = float(values.sum())
    return float(values[mask].sum()) / total if total > 0 else 0.0


def group_depths(model: nn.Module, partition: Partition) -> tuple[int, ...]:
    """The layer of each group, counted from 0 in model order; the first layer of a group that has several."""
    depth = {name: i for i, names in enumerate(by_layer(model).values()) for name in names}
    return tuple(min(depth[name] for name in group.touched) for group in partition)
