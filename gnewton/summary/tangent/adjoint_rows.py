"""The entries of J P_s u for all groups at once, by backward passes of activations.

Where parameters enter the program, at a step z = W∘h with direction U, the entry of column k at sample n is
⟨δ_n^k, (U∘h)_n⟩ with δ^k the adjoint of column k: one product U∘h for all groups, and one backward pass,
without weight gradients, for each column. Nothing depends on the number of groups.

Samples must not be coupled. Two backward passes tell whether they are, and where each sample lies. Their
random columns differ by a factor for each sample; an entry of their adjoints differs by that of its sample.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.linalg import vector_norm

from gnewton.backend import memory_limit
from gnewton.summary.result import PRODUCT, Rounding
from gnewton.summary.tangent.accumulator import Accumulator
from gnewton.summary.tangent.adjoint_pass import AdjointPass, Consumer
from gnewton.summary.tangent.output_factors import OutputLoss, by_sample, random_columns, sample_scales
from gnewton.summary.tangent.output_labels import LabelDraws
from gnewton.summary.tangent.plan import PassPlan, boundary, model_part
from gnewton.summary.tangent.rules.rule import OperationSite
from gnewton.summary.tangent.slice_rows import Place, Seeds, add_slices, find_slices, place_of
from gnewton.summary.tangent.tangent import Rows, Tangent

LIVE = 4  # stacks of the largest value that are held at the same time in the backward pass


@dataclass
class RowPlan:
    """Where parameters enter a program, and what the rows of a batch cost.

    Attributes:
        ends: the steps of the outputs.
        loss: the loss as a function of them.
        samples: number N of samples.
        steps: the steps to push a tangent through, in order: those of parameters alone, and those where
            they meet the data.
        entries: for each of the latter, the steps whose value receives adjoints (its outputs, or itself).
        width: number of outputs of a sample, over all of them.
        places: where the samples lie in the values of these steps; None while unknown.
        slots: where the slices of sliced parameters lie, by step and parameter; None while unknown.
        coupled: whether samples are coupled.
        convex: whether the loss was convex in the outputs of every sample so far.
    """

    ends: tuple[int, ...]
    loss: OutputLoss
    samples: int
    steps: tuple[int, ...]
    entries: dict[int, tuple[int, ...]]
    width: int
    places: dict[int, Place] = field(default_factory=dict)
    slots: dict[tuple[int, str], Place] | None = None
    coupled: bool | None = None
    convex: bool = True

    @cached_property
    def way_back(self) -> AdjointPass:
        """The backward pass from the outputs to the receivers."""
        return AdjointPass(self.loss.program, self.ends, self.receivers)

    @cached_property
    def labels(self) -> LabelDraws:
        """Labels drawn from the likelihood of the loss."""
        return LabelDraws(self.loss)

    @property
    def receivers(self) -> list[int]:
        """The steps whose adjoints are read."""
        return [j for outputs in self.entries.values() for j in outputs]


def make_row_plan(plan: PassPlan, data: Sequence[int], samples: int) -> RowPlan | None:
    """Plan the rows of a program; None where its outputs are not values with a row for each sample.

    Args:
        plan: the plan of the passes.
        data: the steps of the inputs that belong to the batch.
        samples: number of samples.
    """
    program, model = plan.program, model_part(plan.program)
    steps, leaves = program.steps, set(program.parameters.values())
    ends = boundary(program, model)
    if not ends or any(at in leaves or steps[at].shape[:1] != (samples,) for at in ends):
        return None
    sampled = set(data)
    for i, step in enumerate(steps):
        if step.random or any(j in sampled for j in step.reads):
            sampled.add(i)
    pushed: list[int] = []
    entries: dict[int, tuple[int, ...]] = {}
    for i, step in enumerate(steps):
        if not step.active or i not in model or step.op is None:
            continue
        if i not in sampled:
            pushed.append(i)
        elif step.output is None and any(steps[j].active and j not in sampled for j in step.reads):
            pushed.append(i)
            entries[i] = tuple(j for j in plan.outputs.get(i, (i,)) if j in model)
    return RowPlan(
        ends,
        OutputLoss(plan, model, ends),
        samples,
        tuple(pushed),
        entries,
        sum(math.prod(steps[at].shape[1:]) for at in ends),
    )


def send_back(rows: RowPlan, values: Sequence[Any], stacks: Sequence[Tensor], consume: Consumer) -> None:
    """Consume the adjoints of the receivers, for stacks (k, *output) of adjoints of the outputs."""
    if rows.way_back.possible:
        with torch.no_grad():
            rows.way_back.run(values, stacks, consume)
        return
    receivers = [j for j in rows.receivers if values[j].requires_grad]
    adjoints = torch.autograd.grad(
        [values[at] for at in rows.ends],
        [values[j] for j in receivers],
        list(stacks),
        retain_graph=True,
        allow_unused=True,
        is_grads_batched=True,
    )
    for j, adjoint in zip(receivers, adjoints, strict=True):
        if adjoint is not None:
            consume(j, adjoint)


def adjoints_of(rows: RowPlan, values: Sequence[Any], stacks: Sequence[Tensor]) -> dict[int, Tensor]:
    """These adjoints, by step."""
    adjoints: dict[int, Tensor] = {}
    # earlier steps reuse the memory of an adjoint
    send_back(rows, values, stacks, lambda j, adjoint: adjoints.update({j: adjoint.clone()}))
    return adjoints


def find_places(rows: RowPlan, values: Sequence[Any], generator: torch.Generator) -> bool:
    """Find the samples in every value, or that they are coupled; returns whether the rows are exact."""
    z = [values[at] for at in rows.ends]
    columns = random_columns(z, generator)
    scales = sample_scales(rows.samples, generator, z[0])
    pairs = [torch.stack([column, by_sample(column, scales)]) for column in columns]
    rows.coupled = not rows.loss.separates(values, generator)
    if rows.coupled:
        return False
    places: dict[int, Place] = {}
    for j, pair in adjoints_of(rows, values, pairs).items():
        place = place_of(pair, scales, rows.loss.tolerance)
        if place is None or (j in rows.places and rows.places[j] != place):
            rows.coupled = True
            return False
        places[j] = place
    rows.places = rows.places | places
    return True


def form_rows(
    plan: PassPlan,
    rows: RowPlan,
    values: list[Any],
    stacks: Sequence[Tensor],
    direction: Mapping[str, Tensor],
    *,
    joined: bool = False,
    limit: int | None = None,
) -> tuple[Tensor, Tensor]:
    """⟨a_n^k, (J P_s u)_n⟩ for columns a^k, the first of them the gradient.

    Args:
        plan, rows: the plans.
        values: the values of the program, with their graph.
        stacks: the columns of each output, (k, *output).
        direction: u by parameter name.
        joined: sum over the samples instead, N = 1.
        limit: bytes for the adjoints; more columns take several backward passes.

    Returns:
        The rows (S, N, k) in the order of the plan's groups, and the rounding errors of the gradient (S,).
    """
    size, samples = len(plan.order), 1 if joined else rows.samples
    count, device = len(stacks[0]), stacks[0].device
    dtype = functools.reduce(torch.promote_types, [stack.dtype for stack in stacks])
    result = stacks[0].new_zeros(size, samples, count, dtype=dtype)
    noise = torch.zeros(size, dtype=torch.float64, device=device)
    rounding = Rounding.of(plan.dtypes, device)
    chunk = _columns_at_once(rows, values, count, limit)
    seeds: dict[int, Rows] = {}
    if not plan.slicing:
        starts = {name: plan.seeds(name, u) for name, u in direction.items() if name in plan.groups}
        seeds = dict(seeds_of(plan, rows, values)(starts, size))
    for start in range(0, count, chunk):
        at = slice(start, min(start + chunk, count))
        columns = [stack[at] for stack in stacks]
        if plan.slicing:
            adjoints = adjoints_of(rows, values, columns)
            places = dict.fromkeys(rows.receivers) if joined else rows.places
            add_slices(
                plan, seeds_of(plan, rows, values), direction, adjoints, places, rows.slots or {},
                result[:, :, at], noise if start == 0 else None,
            )  # fmt: skip
            continue

        def consume(j: int, adjoint: Tensor, at: slice = at) -> None:
            if j not in seeds:
                return
            place = (0, True) if joined else rows.places[j]
            spread = _by_sample(adjoint, place, samples)
            for groups, part in seeds[j].by_part():
                index = torch.tensor(groups, device=device)
                shares = _inner(_by_sample(part, place, samples), spread)
                result[:, :, at].index_add_(0, index, shares.to(dtype))
                if at.start == 0:
                    lengths = vector_norm(part.flatten(1).double(), dim=1) * vector_norm(adjoint[0].double())
                    noise.index_add_(0, index, PRODUCT * rounding.inner(adjoint[0].numel()) * lengths)

        send_back(rows, values, columns, consume)
    return result, noise


def _columns_at_once(rows: RowPlan, values: Sequence[Any], count: int, limit: int | None) -> int:
    """The number of columns whose adjoints fit into memory at the same time."""
    model = [v for v in values if isinstance(v, Tensor)]
    per_column = LIVE * max((v.numel() * v.element_size() for v in model), default=1)
    bytes_allowed = memory_limit(per_column * count, limit, model[0].device)
    return min(max(1, bytes_allowed // max(per_column, 1)), count)


def _inner(moved: Tensor, spread: Tensor) -> Tensor:
    """Σ_e moved[s, n, e] spread[k, n, e], (s, n, k)."""
    return torch.bmm(moved.transpose(0, 1), spread.to(moved.dtype).permute(1, 2, 0)).transpose(0, 1)


def _by_sample(stack: Tensor, place: Place, samples: int) -> Tensor:
    """A stack (k, *shape) as (k, N, entries of a sample)."""
    axis, together = place
    count = len(stack)
    if axis == 0 and together:
        return stack.reshape(count, samples, -1)
    moved = stack.movedim(axis + 1, 1)
    repeats = moved.shape[1] // samples
    if together:
        return moved.reshape(count, samples, -1)
    return moved.unflatten(1, (repeats, samples)).transpose(1, 2).reshape(count, samples, -1)


def find_slots(
    plan: PassPlan,
    rows: RowPlan,
    values: list[Any],
    direction: Mapping[str, Tensor],
    generator: torch.Generator,
) -> None:
    """Find the slices of sliced parameters in every value where these meet the data."""
    if plan.slicing:
        rows.slots = find_slices(plan, seeds_of(plan, rows, values), direction, generator)


def seeds_of(plan: PassPlan, rows: RowPlan, values: list[Any]) -> Seeds:
    """The tangents of the steps where parameters meet the data, by step, from the parameters alone."""

    def push(starts: Mapping[str, Rows], size: int) -> Iterator[tuple[int, Rows]]:
        for j, tangent in _pushed(plan, rows, values, starts, size):
            yield j, tangent.first

    return push


def _pushed(
    plan: PassPlan, rows: RowPlan, values: list[Any], starts: Mapping[str, Rows], size: int
) -> Iterator[tuple[int, Tangent]]:
    program = plan.program
    device = values[rows.ends[0]].device
    sums = Accumulator(size, device, diagonal=True, third=False, rounding=Rounding(0.0))
    tangents: dict[int, Any] = {}
    for name, i in program.parameters.items():
        if program.steps[i].active and name in starts:
            tangents[i] = Tangent(starts[name])
    for i in rows.steps:
        step = program.steps[i]
        if step.output is not None:
            several = tangents.get(step.reads[0])
            if several is not None and several[step.output] is not None:
                tangents[i] = several[step.output]
            continue
        present = {j: tangents[j].borrowed() for j in step.reads if j in tangents}
        if not present:
            continue
        args, kwargs = program.arguments(step, values)
        with torch.no_grad():
            passed = plan.rules[i].function(OperationSite(step, args, kwargs, values[i], present, {}, sums))
        if i not in rows.entries:
            if isinstance(passed, list):
                tangents[i] = [None if t is None else t.shared() for t in passed]
            elif passed is not None:
                tangents[i] = passed.shared()
                for j in present:
                    tangents[j] = tangents[j].shared()
            continue
        for j in rows.entries[i]:
            which = program.steps[j].output
            tangent = passed if not isinstance(passed, list) else passed[which or 0]
            if tangent is not None:
                yield j, tangent
