"""The plan of the passes over a program: everything that is fixed before the numbers are known.

H̄ is a sum over the steps v of the program, Σ_v ⟨x̄_v, D²f_v[ẋ^s, ẋ^t]⟩ (docs/engine.md). The steps that lead
to the outputs of the model form J, those behind them the loss. The sum over the latter alone is
Uᵀ Jᵀ ∇²ℓ J U, with ∇²ℓ the Hessian of the loss in the outputs: the Gauss–Newton matrix, planned by
:func:`make_cut_plan`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from gnewton.partition import Partition
from gnewton.partition.slices import Slicing
from gnewton.summary.result import Rounding
from gnewton.summary.tangent.accumulator import Accumulator
from gnewton.summary.tangent.program import Program, Ref
from gnewton.summary.tangent.rules import TangentRule, general_rule, rule_of
from gnewton.summary.tangent.tangent import Rows

_GENERAL = TangentRule(general_rule, adjoint=True)


@dataclass(frozen=True)
class PassPlan:
    """What is known of the passes before their numbers: fixed for a program and a partition.

    Attributes:
        program: the traced loss.
        third: whether second-order tangents are carried and third derivatives formed.
        diagonal: whether only the diagonal of the Hessian is kept.
        order: group numbers of the partition in the order in which the program first uses them.
        groups: positions in ``order`` of the groups of each trainable parameter, ascending.
        slicing: how each parameter that is held in slices is divided among these positions.
        rules: the rule of each active step.
        adjoints: steps whose adjoint is read.
        taken: parameters whose share of the gradient the rules add, so that it needs no backward pass.
        last_tangent: the last active reader of each step's tangent.
        dtypes: types of the values that depend on parameters.
        outputs: for steps with several values, the active steps that select one of them.
    """

    program: Program
    third: bool
    diagonal: bool
    order: tuple[int, ...]
    groups: dict[str, tuple[int, ...]]
    slicing: dict[str, Slicing]
    rules: dict[int, TangentRule]
    adjoints: tuple[int, ...]
    taken: frozenset[str]
    last_tangent: tuple[int, ...]
    dtypes: frozenset[torch.dtype]
    outputs: dict[int, tuple[int, ...]]

    def accumulator(self, device: torch.device) -> Accumulator:
        """Empty sums for one run of the passes."""
        return Accumulator(
            len(self.order),
            device,
            diagonal=self.diagonal,
            third=self.third,
            rounding=Rounding.of(self.dtypes, device),
        )

    def seeds(self, name: str, u: Tensor, only: slice = slice(None)) -> Rows:
        """P_s u of a parameter for each of its groups s, or for some of them, from its direction u."""
        groups = self.groups[name][only]
        if name not in self.slicing:
            return Rows(groups, [u.unsqueeze(0)], owned=False)
        slicing = self.slicing[name]
        owners = torch.tensor(slicing.owners, device=u.device)
        mine = owners == torch.tensor(groups, device=u.device)[:, None]
        return Rows(groups, [mine.view(-1, *slicing.view(u.dim())) * u], owned=False)

    @cached_property
    def gradient_bytes(self) -> int:
        """About the memory of a gradient: every value that depends on parameters, and the gradient."""
        steps = self.program.steps
        return sum(
            entries * (step.dtype.itemsize if step.dtype is not None else 4)
            for i, (step, entries) in enumerate(zip(steps, _entries(self.program), strict=True))
            if step.active and step.output is None and not (i in self.rules and self.rules[i].view)
        )

    @property
    def random_steps(self) -> list[int]:
        """The steps that draw random numbers for the loss."""
        return [i for i, step in enumerate(self.program.steps) if step.random and step.needed]

    @property
    def positions(self) -> list[int]:
        """For each group of the partition, its position in ``order``."""
        rank = {s: position for position, s in enumerate(self.order)}
        return [rank[s] for s in range(len(rank))]


def make_plan(program: Program, partition: Partition, *, third: bool, diagonal: bool) -> PassPlan:
    """Plan the passes over a program."""
    steps = program.steps
    rules = {
        i: rule_of(step) or _GENERAL
        for i, step in enumerate(steps)
        if step.active and step.op is not None and step.output is None
    }
    active_readers = [[r for r in readers if steps[r].active] for readers in program.readers]
    outputs: dict[int, tuple[int, ...]] = {}
    for i, step in enumerate(steps):
        if step.active and step.output is not None:
            outputs[step.reads[0]] = (*outputs.get(step.reads[0], ()), i)
    starts: dict[int, int] = {}
    for name, i in program.parameters.items():
        first = min(active_readers[i], default=len(steps))
        for group in partition.holders[name]:
            starts[group] = min(starts.get(group, first), first)
    order = tuple(sorted(range(len(partition)), key=lambda s: (starts.get(s, len(steps)), s)))
    rank = {s: position for position, s in enumerate(order)}
    taken = frozenset(
        name for name, i in program.parameters.items() if _taken(i, program, rules, active_readers)
    )
    shares = _shares(program, rules, taken)
    return PassPlan(
        program=program,
        third=third,
        diagonal=diagonal,
        order=order,
        groups={name: tuple(sorted(rank[s] for s in partition.holders[name])) for name in program.parameters},
        slicing={
            name: Slicing(slicing.axis, tuple(rank[s] for s in slicing.owners))
            for name, slicing in partition.slicing.items()
        },
        rules=rules,
        adjoints=tuple(i for i, rule in rules.items() if rule.adjoint or i in shares),
        taken=taken,
        last_tangent=tuple(max(readers, default=-1) for readers in active_readers),
        dtypes=frozenset(step.dtype for step in steps if step.active and step.dtype is not None),
        outputs=outputs,
    )


def _taken(i: int, program: Program, rules: Mapping[int, TangentRule], readers: Sequence[list[int]]) -> bool:
    """Whether every active reader of step i adds its share of the gradient, directly or through views."""
    if i == program.loss or not readers[i]:
        return False
    for r in readers[i]:
        rule, step = rules.get(r), program.steps[r]
        if rule is None:
            return False
        at = [p for p, argument in enumerate(step.args) if argument == Ref(i)]
        if rule.view and at == [0]:
            if not _taken(r, program, rules, readers):
                return False
        elif not at or any(p not in rule.takes_gradient for p in at):
            return False
    return True


def _shares(program: Program, rules: Mapping[int, TangentRule], taken: frozenset[str]) -> set[int]:
    """The steps that add the share of a parameter to the gradient."""
    leaves = {program.parameters[name] for name in taken}
    shares: set[int] = set()
    for i, rule in rules.items():
        args = program.steps[i].args
        if rule.view and type(args[0]) is Ref and args[0].step in leaves:
            leaves.add(i)
        if any(
            p < len(args) and type(args[p]) is Ref and args[p].step in leaves for p in rule.takes_gradient
        ):
            shares.add(i)
    return shares


def tangent_bytes(plan: PassPlan) -> int:
    """Peak bytes of the tangents of a pass, including two stacks of the largest layer as work space."""
    program = plan.program
    steps, copies = program.steps, 2 if plan.third else 1
    started: list[frozenset[int]] = [frozenset()] * len(steps)
    for name, i in program.parameters.items():
        started[i] = frozenset(plan.groups[name])
    held = [0] * len(steps)
    entries = _entries(program)
    live = peak = 0
    trainable = set(program.parameters.values())
    for i, step in enumerate(steps):
        if not step.active or i in trainable:
            continue
        started[i] = frozenset().union(*(started[j] for j in step.reads))
        itemsize = step.dtype.itemsize if step.dtype is not None else 4
        if step.output is None:
            held[i] = entries[i] * itemsize * len(started[i]) * copies
        live += held[i]
        peak = max(peak, live + held[i])
        for j in step.reads:
            if plan.last_tangent[j] == i:
                live -= held[j]
    return peak


def _entries(program: Program) -> list[int]:
    """The entries of the value of every step."""
    entries = [0] * len(program.steps)
    for i, step in enumerate(program.steps):
        if all(type(n) is int for n in step.shape):
            entries[i] = math.prod(step.shape)
        else:  # the result of a mask: at most the entries of its source
            entries[i] = max((entries[j] for j in step.reads), default=0)
    return entries


def model_part(program: Program) -> frozenset[int]:
    """The steps that lead to an output of the model, parameters and inputs among them."""
    steps = program.steps
    seen: set[int] = set(program.parameters.values())
    stack = [i for i in program.cut if steps[i].needed]
    while stack:
        i = stack.pop()
        if i not in seen:
            seen.add(i)
            stack.extend(steps[i].reads)
    return frozenset(seen)


def boundary(program: Program, model: frozenset[int]) -> tuple[int, ...]:
    """The active steps of the model that the loss reads: its outputs, and parameters of a penalty."""
    steps = program.steps
    read = {
        j
        for i, step in enumerate(steps)
        if step.active and i not in model
        for j in step.reads
        if j in model and steps[j].active
    }
    return tuple(sorted(read))


def make_cut_plan(program: Program, partition: Partition, *, third: bool, diagonal: bool) -> PassPlan:
    """Plan the passes: the loss alone reads adjoints, and the backward pass forms the gradient."""
    plan = make_plan(program, partition, third=third, diagonal=diagonal)
    model = model_part(program)
    behind = tuple(i for i, rule in plan.rules.items() if i not in model and rule.adjoint)
    return replace(plan, adjoints=behind, taken=frozenset())
