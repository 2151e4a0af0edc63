"""Rows of slices: one product U∘h for all slices of a parameter, not summed over them.

Where a parameter with direction U enters the program, at z = W∘h, an entry of U∘h mostly depends on a single
slice of U: that of its output channel. Then the share of slice i in the row of column k at sample n is
Σ_e δ^k_{nie} (U∘h)_{nie} over the entries e of this sample and this slice. Two products tell which slice an
entry depends on: one with a random direction, and one with this direction times a factor for each slice.
Slices that mix in every entry, such as columns of a matrix, are pushed one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from gnewton.summary.result import PRODUCT, Rounding
from gnewton.summary.tangent.output_factors import sample_scales, tolerance_of
from gnewton.summary.tangent.plan import PassPlan
from gnewton.summary.tangent.tangent import Rows

Place = tuple[int, bool]
"""The axis of a value along which pieces lie, and whether the entries of a piece follow each other."""

Seeds = Callable[[Mapping[str, Rows], int], Iterator[tuple[int, Rows]]]
"""From the first tangents of the parameters, and a bound on their numbers, to those of the steps where
parameters meet the data."""

ENTRIES = 1 << 25  # of a stack of slices that are pushed one by one
WORK = 1 << 21  # entries of a product of all columns at a time
FEW = 64  # groups that are summed by a product


def place_of(pair: Tensor, scales: Tensor, tolerance: float) -> Place | None:
    """Where pieces lie in a value, from two tangents that differ by a factor for each piece.

    Args:
        pair: the two tangents, (2, *shape).
        scales: the factors, (pieces,).
        tolerance: relative error of an entry.
    """
    one, other = pair[0], pair[1]
    allowed = tolerance * one.abs().amax() * scales.abs().amax()
    for axis, length in enumerate(one.shape):
        if length == 0 or length % len(scales):
            continue
        repeats = length // len(scales)
        for together in (True, False) if repeats > 1 else (True,):
            line = scales.repeat_interleave(repeats) if together else scales.repeat(repeats)
            shape = [1] * one.dim()
            shape[axis] = length
            if bool(((other - line.view(shape) * one).abs() <= allowed).all()):
                return axis, together
    return None


def find_slices(
    plan: PassPlan, seeds: Seeds, direction: Mapping[str, Tensor], generator: torch.Generator
) -> dict[tuple[int, str], Place]:
    """Where the slices of each parameter lie in the tangents that start from it, by step and parameter.

    An entry is missing where slices mix.
    """
    starts: dict[str, Rows] = {}
    scales: dict[str, Tensor] = {}
    names: list[str] = []
    for name, slicing in plan.slicing.items():
        u = direction[name]
        probe = torch.randn(u.shape, generator=generator, dtype=u.dtype, device=u.device)
        scales[name] = sample_scales(len(slicing.owners), generator, u)
        scaled = scales[name].view(slicing.view(u.dim())) * probe
        first = 2 * len(names)
        starts[name] = Rows((first, first + 1), [torch.stack([probe, scaled])], owned=False)
        names.append(name)
    slots: dict[tuple[int, str], Place] = {}
    for j, moved in seeds(starts, 2 * len(names)):
        for number in sorted({g // 2 for g in moved.groups}):
            name, pair = names[number], moved.pick((2 * number, 2 * number + 1))
            place = place_of(pair, scales[name], tolerance_of(plan.dtypes))
            if place is not None and bool(pair[0].any()):  # zeros show nothing
                slots[j, name] = place
    return slots


def add_slices(
    plan: PassPlan,
    seeds: Seeds,
    direction: Mapping[str, Tensor],
    adjoints: Mapping[int, Tensor | None],
    places: Mapping[int, Place | None],
    slots: Mapping[tuple[int, str], Place],
    result: Tensor,
    noise: Tensor | None,
) -> None:
    """Add the shares of all parameters to the rows.

    Args:
        plan: the plan of the passes.
        seeds: the tangents where parameters meet the data.
        direction: u by parameter name.
        adjoints: of these steps, (k, *shape).
        places: where the samples lie in these steps; None: they are summed, N = 1.
        slots: the value of :func:`find_slices`.
        result: (S, N, k), in the order of the plan's groups.
        noise: the rounding errors of the gradient (S,), for the first column; None: not wanted.
    """
    names = list(plan.program.parameters)
    names = [name for name in names if plan.program.steps[plan.program.parameters[name]].active]
    number = {name: k for k, name in enumerate(names)}
    starts = {name: Rows((k,), [direction[name].unsqueeze(0)], owned=False) for name, k in number.items()}
    mixed: dict[str, set[int]] = {}
    samples = result.shape[1]
    for j, moved in seeds(starts, len(names)):
        adjoint = adjoints.get(j)
        if adjoint is None:
            continue
        for k in moved.groups:
            name, slot = names[k], None
            if name in plan.slicing:
                slot = slots.get((j, name))
                if slot is None or (places[j] is not None and slot[0] == places[j][0]):  # type: ignore[index]
                    mixed.setdefault(name, set()).add(j)
                    continue
            owners = plan.groups[name] if slot is None else plan.slicing[name].owners
            _add(plan, moved.pick((k,)), adjoint, owners, places[j], slot, samples, result, noise)
    for name, at in mixed.items():
        together = max(1, ENTRIES // max(direction[name].numel(), 1))
        for start in range(0, len(plan.groups[name]), together):
            stack = plan.seeds(name, direction[name], slice(start, start + together))
            groups = stack.groups
            part = Rows(tuple(range(len(groups))), stack.parts, owned=False)
            for j, moved in seeds({name: part}, len(groups)):
                adjoint = adjoints.get(j)
                if j not in at or adjoint is None:
                    continue
                for i, row in zip(moved.groups, moved.merge(), strict=True):
                    one = (groups[i],)
                    _add(plan, row.unsqueeze(0), adjoint, one, places[j], None, samples, result, noise)


def _add(
    plan: PassPlan,
    moved: Tensor,
    adjoint: Tensor,
    owners: tuple[int, ...],
    place: Place | None,
    slot: Place | None,
    samples: int,
    result: Tensor,
    noise: Tensor | None,
) -> None:
    """Add Σ_e moved[n, i, e] adjoint[k, n, i, e] to the rows of the group of every slice i."""
    one = split(moved, place, samples, slot, len(owners))[0]
    many = split(adjoint, place, samples, slot, len(owners))
    width = max(1, WORK // max(one.numel(), 1))
    shares = torch.cat([_over_entries(many[k : k + width] * one) for k in range(0, len(many), width)])
    _add_by_group(shares.to(result.dtype), owners, result)
    index = torch.tensor(owners, device=result.device)
    if noise is not None:
        rounding = Rounding.of(plan.dtypes, result.device)
        sizes = [x.square().sum((0, 2), dtype=torch.float64) for x in (one, many[0])]
        terms = one.numel() // len(owners)
        noise.index_add_(0, index, PRODUCT * rounding.inner(terms) * (sizes[0] * sizes[1]).sqrt())


def _over_entries(products: Tensor) -> Tensor:
    """Σ_e products[k, n, i, e]."""
    return products.squeeze(3) if products.shape[3] == 1 else products.sum(3)


def _add_by_group(shares: Tensor, owners: tuple[int, ...], result: Tensor) -> None:
    """Add shares (k, N, slices) to the rows (S, N, k) of their groups."""
    distinct = sorted(set(owners))
    groups = owners
    if len(distinct) <= min(FEW, len(owners) // 2):  # one product is faster than adding row by row
        member = shares.new_zeros(len(owners), len(distinct))
        member[range(len(owners)), [distinct.index(owner) for owner in owners]] = 1
        shares, groups = shares @ member, tuple(distinct)
    result.index_add_(0, torch.tensor(groups, device=result.device), shares.permute(2, 1, 0))


def split(stack: Tensor, place: Place | None, samples: int, slot: Place | None, slices: int) -> Tensor:
    """A stack (k, *shape) as (k, N, slices, entries of a sample and slice); None stands for all entries."""
    cuts = [(place, samples), (slot, slices)]
    positions: list[int] = [0, 0]
    for which in sorted((0, 1), key=lambda w: -1 if cuts[w][0] is None else cuts[w][0][0], reverse=True):  # type: ignore[index]
        where, length = cuts[which]
        if where is None:
            stack = stack.unsqueeze(1)
            positions = [p + 1 for p in positions]
            positions[which] = 1
            continue
        axis, together = where[0] + 1, where[1]
        repeats = stack.shape[axis] // length
        stack = stack.unflatten(axis, (length, repeats) if together else (repeats, length))
        positions = [p + 1 if p > axis else p for p in positions]
        positions[which] = axis if together else axis + 1
    moved = stack.movedim(positions, (1, 2))
    return moved.flatten(3) if moved.dim() > 3 else moved.unsqueeze(3)
