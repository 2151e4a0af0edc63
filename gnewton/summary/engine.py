"""The tangent engine: one primal pass, one adjoint pass, one pass of stacked tangents (docs/engine.md)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gnewton.partition import Partition
from gnewton.summary.accumulate import Accumulator
from gnewton.summary.graph import CONSTANT, FLAT, Program, Ref, Step, TraceError
from gnewton.summary.rounding import Rounding
from gnewton.summary.rules import RULES, Rule, general_rule
from gnewton.summary.site import Site
from gnewton.summary.stacks import Stacks
from gnewton.summary.tangents import Rows, Tangent

aten = torch.ops.aten

# operations that move running statistics in training mode: (positions of these, position of the mode)
_BATCH_NORMS = {
    getattr(aten, name).default: ((3, 4), 5)
    for name in ("native_batch_norm", "_native_batch_norm_legit_functional")
    if hasattr(aten, name)
}
_GENERAL = Rule(general_rule, adjoint=True)


@dataclass(frozen=True)
class Plan:
    """What can be known before the numbers: fixed for a program and a partition.

    Attributes:
        order: group numbers of the partition in the order in which the program first uses them.
        groups: position in ``order`` of the group of each trainable parameter.
        rules: the rule of each active step.
        adjoints: steps whose adjoint is read.
        taken: parameters whose share in the gradient the rules take, so that it needs no backward pass.
        last_tangent: the last active reader of each step's tangent.
        dtypes: of the values that move.
        outputs: for steps with several values: the active steps that pick one of them.
    """

    order: tuple[int, ...]
    groups: dict[str, int]
    rules: dict[int, Rule]
    adjoints: tuple[int, ...]
    taken: frozenset[str]
    last_tangent: tuple[int, ...]
    dtypes: frozenset[torch.dtype]
    outputs: dict[int, tuple[int, ...]]


def make_plan(program: Program, partition: Partition) -> Plan:
    """Prepare the passes over a program."""
    steps = program.steps
    rules = {
        i: RULES.get(step.op, _GENERAL)
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
        group, first = partition.index[name], min(active_readers[i], default=len(steps))
        starts[group] = min(starts.get(group, first), first)
    order = tuple(sorted(range(len(partition)), key=lambda s: (starts.get(s, len(steps)), s)))
    rank = {s: position for position, s in enumerate(order)}
    taken = frozenset(
        name for name, i in program.parameters.items() if _taken(i, program, rules, active_readers)
    )
    shares = _shares(program, rules, taken)
    return Plan(
        order=order,
        groups={name: rank[partition.index[name]] for name in program.parameters},
        rules=rules,
        adjoints=tuple(i for i, rule in rules.items() if rule.adjoint or i in shares),
        taken=taken,
        last_tangent=tuple(max(readers, default=-1) for readers in active_readers),
        dtypes=frozenset(step.dtype for step in steps if step.active and step.dtype is not None),
        outputs=outputs,
    )


def _taken(i: int, program: Program, rules: Mapping[int, Rule], readers: Sequence[list[int]]) -> bool:
    """Whether every active reader of step i takes its gradient, directly or through views."""
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


def _shares(program: Program, rules: Mapping[int, Rule], taken: frozenset[str]) -> set[int]:
    """The steps that take the share of a parameter in the gradient."""
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


@dataclass(frozen=True)
class Passes:
    """What the three passes leave behind, groups still in the program's order.

    Attributes:
        sums: gradient, Hessian, third derivative, and the rounding errors of each.
        loss: the loss of the batch.
        slope: the gradient once more, by the tangent of the loss: an independent check.
    """

    sums: Accumulator
    loss: Tensor
    slope: Tensor


def run(
    program: Program,
    plan: Plan,
    parameters: Mapping[str, Tensor],
    inputs: Sequence[Any],
    direction: Mapping[str, Tensor],
    *,
    third: bool,
    diagonal: bool,
    stacks: Stacks,
    draws: Mapping[int, Any] | None = None,
    confirm: Callable[[Mapping[str, Tensor], Sequence[Any]], None] | None = None,
) -> Passes:
    """Make the three passes.

    Args:
        program: the traced loss.
        plan: its plan.
        parameters: value of each trainable parameter, detached.
        inputs: the remaining inputs of the program, in its order.
        direction: u by parameter name.
        third: whether to carry second-order tangents.
        diagonal: whether to keep only the diagonal of the Hessian.
        stacks: where memory for large stacks comes from.
        draws: values of random steps drawn before, by step; the others are drawn now.
        confirm: called after the primal pass with the leaves and the value of every step; may raise.
    """
    leaves = {name: p.detach().requires_grad_() for name, p in parameters.items()}
    values = forward(program, leaves, inputs, draws)
    if confirm is not None:
        confirm(leaves, values)
    loss: Tensor = values[program.loss]
    rounding = Rounding.of(plan.dtypes, loss.device)
    sums = Accumulator(len(plan.order), loss.device, diagonal=diagonal, third=third, rounding=rounding)
    if not program.steps[program.loss].active or not loss.requires_grad:
        return Passes(sums, loss.detach().double(), torch.zeros_like(sums.gradient))
    adjoints = _backward(plan, values, loss, leaves, sums, direction)
    with torch.no_grad():
        slope = _tangents(program, plan, values, adjoints, direction, sums, stacks)
    return Passes(sums, loss.detach().double(), slope)


def forward(
    program: Program,
    leaves: Mapping[str, Tensor],
    inputs: Sequence[Any],
    draws: Mapping[int, Any] | None = None,
) -> list[Any]:
    """The value of every step that the loss needs. Running statistics do not move."""
    values: list[Any] = [None] * len(program.steps)
    for name, i in program.parameters.items():
        values[i] = leaves[name]
    for i, value in zip(program.inputs, inputs, strict=True):
        values[i] = value
    for i, step in enumerate(program.steps):
        if step.op is None:
            if step.constant is not None:
                values[i] = step.constant
        elif draws is not None and i in draws:
            values[i] = draws[i]
        elif step.needed:
            values[i] = _call(program, step, values)
    return values


def _call(program: Program, step: Step, values: Sequence[Any]) -> Any:
    args, kwargs = program.arguments(step, values)
    if step.op is CONSTANT:
        return args[0].detach()
    if step.op in _BATCH_NORMS:
        statistics, training = _BATCH_NORMS[step.op]
        if args[training]:
            for position in statistics:
                args[position] = None
    if step.op in FLAT:
        with torch.no_grad():
            return step.op(*args, **kwargs)
    return step.op(*args, **kwargs)


def _backward(
    plan: Plan,
    values: Sequence[Any],
    loss: Tensor,
    leaves: Mapping[str, Tensor],
    sums: Accumulator,
    direction: Mapping[str, Tensor],
) -> dict[int, dict[int | None, Tensor]]:
    """Adjoints of the steps whose rules read them; the gradient entries that no rule will take."""
    wanted: list[tuple[int, int | None, Tensor]] = []
    for i in plan.adjoints:
        if i in plan.outputs:
            picks = [(j, values[j]) for j in plan.outputs[i]]
            wanted.extend((i, k, v) for k, v in enumerate(values[i]) if any(v is p for _, p in picks))
        elif isinstance(values[i], Tensor):
            wanted.append((i, None, values[i]))
    wanted = [entry for entry in wanted if entry[2].requires_grad]
    names = [name for name in leaves if name not in plan.taken]
    grads = torch.autograd.grad(
        loss, [v for _, _, v in wanted] + [leaves[n] for n in names], allow_unused=True
    )
    adjoints: dict[int, dict[int | None, Tensor]] = {}
    for (i, k, _), grad in zip(wanted, grads[: len(wanted)], strict=True):
        if grad is not None:
            adjoints.setdefault(i, {})[k] = grad
    with torch.no_grad():
        for name, grad in zip(names, grads[len(wanted) :], strict=True):
            if grad is not None:
                sums.add_gradient((plan.groups[name],), direction[name].unsqueeze(0), grad)
    return adjoints


def _tangents(
    program: Program,
    plan: Plan,
    values: list[Any],
    adjoints: dict[int, dict[int | None, Tensor]],
    direction: Mapping[str, Tensor],
    sums: Accumulator,
    stacks: Stacks,
) -> Tensor:
    """Push all tangents through the program, add every contribution, and return the tangent of the loss."""
    tangents: dict[int, Any] = {}
    for name, i in program.parameters.items():
        if program.steps[i].active:
            row = Rows((plan.groups[name],), [direction[name].unsqueeze(0)], owned=False)
            tangents[i] = Tangent(row, leaf=name in plan.taken)
    for i, step in enumerate(program.steps):
        if step.active and step.op is not None:
            passed = _step(program, plan, i, values, adjoints, tangents, sums, stacks)
            if passed is not None:
                tangents[i] = passed
        for j in step.reads:
            if plan.last_tangent[j] == i:
                tangents.pop(j, None)
            if program.steps[j].last_reader == i and j != program.loss:
                values[j] = None
    slope = torch.zeros_like(sums.gradient)
    final = tangents.get(program.loss)
    if final is not None:
        slope[list(final.first.groups)] = final.first.data.double()
    return slope


def _step(
    program: Program,
    plan: Plan,
    i: int,
    values: Sequence[Any],
    adjoints: dict[int, dict[int | None, Tensor]],
    tangents: dict[int, Any],
    sums: Accumulator,
    stacks: Stacks,
) -> Any:
    step = program.steps[i]
    if step.output is not None:
        several = tangents.get(step.reads[0])
        return None if several is None or step.output >= len(several) else several[step.output]
    present = {j: tangents[j] for j in step.reads if j in tangents}
    if not present:
        return None
    handed = {
        j: tangent if plan.last_tangent[j] == i else tangent.borrowed() for j, tangent in present.items()
    }
    args, kwargs = program.arguments(step, values)
    site = Site(step, args, kwargs, values[i], handed, adjoints.pop(i, {}), sums, stacks)
    try:
        passed = plan.rules[i].function(site)
    except (NotImplementedError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise TraceError(f"no derivative of {step.op}: {type(error).__name__}: {error}") from error
    made = passed if isinstance(passed, list) else [passed]
    if any(rows is not None and not rows.owned for t in made if t is not None for rows in t.rows()):
        for tangent in present.values():  # what was made may share memory with what was read
            for rows in tangent.rows():
                rows.owned = False
    return passed
