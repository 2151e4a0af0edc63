"""The parts of a parameter that belong to its groups: P_s u, and sums over the entries of each group."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from gnewton.errors import InputError
from gnewton.partition import Partition
from gnewton.partition.slices import MOST_BY_TANGENTS


def sums_by_group(partition: Partition, name: str, terms: Tensor) -> tuple[tuple[int, ...], Tensor]:
    """Sums of one number per entry of a parameter over its groups, float64; it can be differentiated.

    Args:
        partition: S groups.
        name: the parameter.
        terms: a tensor of its shape.

    Returns:
        The groups, ascending, and the sum over the entries of each, (k,).
    """
    groups = partition.holders[name]
    slicing = partition.slicing.get(name)
    if slicing is None:
        return groups, terms.sum(dtype=torch.float64).reshape(1)
    lines = terms.movedim(slicing.axis, 0).reshape(len(slicing.owners), -1).sum(1, dtype=torch.float64)
    rank = {s: k for k, s in enumerate(groups)}
    owners = torch.tensor([rank[s] for s in slicing.owners], device=terms.device)
    return groups, lines.new_zeros(len(groups)).index_add(0, owners, lines)


def part_of(partition: Partition, name: str, u: Tensor, s: int) -> Tensor | None:
    """P_s u of one parameter; None where the group holds nothing of it."""
    if s not in partition.holders[name]:
        return None
    slicing = partition.slicing.get(name)
    if slicing is None:
        return u
    mine = torch.tensor([owner == s for owner in slicing.owners], device=u.device)
    return torch.where(mine.view(slicing.view(u.dim())), u, 0.0)


class GroupDirections:
    """The directions P_s u, each a list in the order of the names, with None for zero; formed when read.

    Args:
        partition: S groups.
        direction: u by parameter name.
        names: of the parameters.
    """

    def __init__(self, partition: Partition, direction: Mapping[str, Tensor], names: Sequence[str]) -> None:
        self._partition = partition
        self._direction = direction
        self._names = tuple(names)

    def __len__(self) -> int:
        return len(self._partition)

    def __iter__(self) -> Iterator[list[Tensor | None]]:
        for s in range(len(self)):
            yield [part_of(self._partition, name, self._direction[name], s) for name in self._names]

    def gradient(self, grads: Sequence[Tensor | None], device: torch.device) -> Tensor:
        """⟨g, P_s u⟩ for every group, (S,), float64, of a gradient in the order of the names."""
        entries = torch.zeros(len(self), dtype=torch.float64, device=device)
        for name, g in zip(self._names, grads, strict=True):
            if g is not None:
                groups, sums = sums_by_group(self._partition, name, g * self._direction[name])
                entries[list(groups)] += sums
        return entries


def check_carried(partition: Partition, what: str) -> None:
    """Check that the tangents of all groups may be carried one by one.

    Raises:
        InputError: if some groups are slices and there are too many.
    """
    if partition.sliced and len(partition) > MOST_BY_TANGENTS:
        raise InputError(
            f"summary: {what} of {len(partition):,} groups, some of them slices of tensors: must be at most "
            f"{MOST_BY_TANGENTS}; more take the Gauss–Newton or the Fisher matrix without third derivatives "
            "(gnewton train optimizer.curvature.matrix=gauss_newton optimizer.solver=ridge)"
        )
