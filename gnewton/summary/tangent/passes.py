"""The passes of the tangent engine: one primal, one adjoint, one of stacked tangents (docs/engine.md)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gnewton.backend import is_exhausted
from gnewton.errors import first_line
from gnewton.summary.tangent.accumulator import Accumulator
from gnewton.summary.tangent.plan import PassPlan
from gnewton.summary.tangent.program import CONSTANT, FLAT, Program, Step, TraceError
from gnewton.summary.tangent.rules.rule import OperationSite
from gnewton.summary.tangent.tangent import Tangent

aten = torch.ops.aten

# operations that update running statistics in training mode: (positions of these, position of the mode)
_BATCH_NORMS = {
    getattr(aten, name).default: ((3, 4), 5)
    for name in ("native_batch_norm", "_native_batch_norm_legit_functional")
    if hasattr(aten, name)
}


@dataclass(frozen=True)
class Arguments:
    """What a program is called with.

    Attributes:
        parameters: value of each trainable parameter by name, detached.
        inputs: the remaining inputs of the program, in its order.
        direction: u by parameter name.
        draws: values of random steps that have been drawn, by step; the other steps draw in the pass.
    """

    parameters: Mapping[str, Tensor]
    inputs: Sequence[Any]
    direction: Mapping[str, Tensor]
    draws: Mapping[int, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Passes:
    """The result of the three passes, with the groups in the program's order.

    Attributes:
        sums: gradient, Hessian, third derivative, and the rounding errors of each.
        loss: the loss of the batch.
        slope: the gradient as the tangent of the loss, an independent check.
    """

    sums: Accumulator
    loss: Tensor
    slope: Tensor


def run_passes(
    plan: PassPlan,
    arguments: Arguments,
    confirm: Callable[[Mapping[str, Tensor], Sequence[Any]], None] | None = None,
) -> Passes:
    """Run the three passes.

    Args:
        plan: the plan of a program.
        arguments: what the program is called with.
        confirm: called after the primal pass with the leaves and the value of every step; may raise.
    """
    program = plan.program
    leaves = {name: p.detach().requires_grad_() for name, p in arguments.parameters.items()}
    values = forward(program, leaves, arguments.inputs, arguments.draws)
    if confirm is not None:
        confirm(leaves, values)
    loss: Tensor = values[program.loss]
    sums = plan.accumulator(loss.device)
    if not program.steps[program.loss].active or not loss.requires_grad:
        return Passes(sums, loss.detach().double(), torch.zeros_like(sums.gradient))
    adjoints = _backward(plan, values, loss, leaves, sums, arguments.direction)
    with torch.no_grad():
        slope = _push_tangents(plan, values, adjoints, arguments.direction, sums)
    return Passes(sums, loss.detach().double(), slope)


def forward(
    program: Program,
    leaves: Mapping[str, Tensor],
    inputs: Sequence[Any],
    draws: Mapping[int, Any] | None = None,
) -> list[Any]:
    """The value of every step that the loss needs. Running statistics are not updated."""
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
            values[i] = call_step(program, step, values)
    return values


def call_step(program: Program, step: Step, values: Sequence[Any]) -> Any:
    """The value of a step, from those of earlier ones."""
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
    plan: PassPlan,
    values: Sequence[Any],
    loss: Tensor,
    leaves: Mapping[str, Tensor],
    sums: Accumulator,
    direction: Mapping[str, Tensor],
) -> dict[int, dict[int | None, Tensor]]:
    """Adjoints of the steps whose rules read them; adds the gradient entries that no rule adds."""
    sought: list[tuple[int, int | None, Tensor]] = []
    for i in plan.adjoints:
        if i in plan.outputs:
            picks = [values[j] for j in plan.outputs[i]]
            sought.extend((i, k, v) for k, v in enumerate(values[i]) if any(v is p for p in picks))
        elif isinstance(values[i], Tensor):
            sought.append((i, None, values[i]))
    sought = [entry for entry in sought if entry[2].requires_grad]
    names = [name for name in leaves if name not in plan.taken]
    grads = torch.autograd.grad(
        loss, [v for _, _, v in sought] + [leaves[n] for n in names], allow_unused=True
    )
    adjoints: dict[int, dict[int | None, Tensor]] = {}
    for (i, k, _), grad in zip(sought, grads[: len(sought)], strict=True):
        if grad is not None:
            adjoints.setdefault(i, {})[k] = grad
    with torch.no_grad():
        for name, grad in zip(names, grads[len(sought) :], strict=True):
            if grad is not None:
                rows = plan.seeds(name, direction[name])
                sums.add_gradient(rows.groups, rows.parts[0], grad)
    return adjoints


def _push_tangents(
    plan: PassPlan,
    values: list[Any],
    adjoints: dict[int, dict[int | None, Tensor]],
    direction: Mapping[str, Tensor],
    sums: Accumulator,
) -> Tensor:
    """Push all tangents through the program, add every contribution, and return the tangent of the loss."""
    program = plan.program
    tangents: dict[int, Any] = {}
    for name, i in program.parameters.items():
        if program.steps[i].active:
            tangents[i] = Tangent(plan.seeds(name, direction[name]), leaf=name in plan.taken)
    for i, step in enumerate(program.steps):
        if step.active and step.op is not None:
            passed = _push_step(plan, i, values, adjoints, tangents, sums)
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
        slope[list(final.first.groups)] = final.first.merge().double()
    return slope


def _push_step(
    plan: PassPlan,
    i: int,
    values: Sequence[Any],
    adjoints: dict[int, dict[int | None, Tensor]],
    tangents: dict[int, Any],
    sums: Accumulator,
) -> Any:
    """The tangent of step i, or those of its several values; None where it has none."""
    step = plan.program.steps[i]
    if step.output is not None:
        several = tangents.get(step.reads[0])
        return None if several is None or step.output >= len(several) else several[step.output]
    present = {j: tangents[j] for j in step.reads if j in tangents}
    if not present:
        return None
    readable = {
        j: tangent if plan.last_tangent[j] == i else tangent.borrowed() for j, tangent in present.items()
    }
    args, kwargs = plan.program.arguments(step, values)
    site = OperationSite(step, args, kwargs, values[i], readable, adjoints.pop(i, {}), sums)
    try:
        passed = plan.rules[i].function(site)
    except (NotImplementedError, RuntimeError) as error:
        if is_exhausted(error):
            raise
        raise TraceError(f"no derivative of {step.op}: {first_line(error, with_type=True)}") from error
    results = passed if isinstance(passed, list) else [passed]
    if any(not rows.owned for tangent in results if tangent is not None for rows in tangent.rows()):
        for j, tangent in present.items():  # the result may share memory with the arguments
            tangents[j] = tangent.shared()
    return passed
