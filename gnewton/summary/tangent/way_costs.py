"""What the two ways to a Gauss–Newton matrix cost, counted in operations."""

from __future__ import annotations

import math

from gnewton.summary.tangent.adjoint_rows import RowPlan
from gnewton.summary.tangent.plan import PassPlan, model_part
from gnewton.summary.tangent.program import Ref, Step, aten

GATE = 8  # multiplications that cost as much as one entry of an element-wise pass
READ = 4  # and as much as reading an entry
SLICED = 44  # and as much as adding an entry to the row of its slice
CALLS = 4_000_000  # and as much as the calls for the slices of a parameter


def operations(plan: PassPlan, rows: RowPlan, columns: int) -> tuple[float, float]:
    """Operations of the rows of ``columns`` columns, and of the tangents of all groups to the outputs.

    Rows take a backward product of every column for each factor of a step that is no parameter, the product
    of every direction with the data, and their inner products with the columns. They include the gradient.
    The shares of slices are added one by one. Tangents take a product of every group that a factor depends
    on, and one more for the gradient. They form slices one by one, in three passes over their parameter.
    Views cost nothing. The weights are those of docs/performance.md.
    """
    program = plan.program
    steps = program.steps
    started: list[frozenset[int]] = [frozenset()] * len(steps)
    slices: list[frozenset[str]] = [frozenset()] * len(steps)  # the sliced parameters in a step
    by_rows = by_tangents = 0.0
    for name, i in program.parameters.items():
        started[i] = frozenset(plan.groups[name])
        if name in plan.slicing:
            slices[i] = frozenset((name,))
            by_tangents += 3.0 * _work(plan, i) * len(started[i])
    model = model_part(program)
    entering = set(rows.steps)
    own = set(program.parameters.values()) | entering - set(rows.entries)  # of parameters alone
    for i, step in enumerate(steps):
        if not step.active or i not in model or step.op is None:
            continue
        started[i] = frozenset().union(*(started[j] for j in step.reads))
        entering_slices = frozenset[str]().union(*(slices[j] for j in step.reads if j in own))
        if i in own:
            slices[i] = entering_slices
        if step.output is not None or plan.rules[i].view or getattr(step.op, "is_view", False):
            continue
        size, moving = float(_work(plan, i)), [j for j in step.reads if steps[j].active]
        factors = _factors(step)
        if factors:
            moving = [j for j in moving if j in factors]
            by_tangents += size * sum(len(started[j]) + 1 for j in moving)
        else:
            by_tangents += size * (len(started[i]) + 1)
        data = sum(j not in own for j in moving)
        by_rows += size * columns * (data if factors else min(data, 1))
        if i in entering:
            by_rows += size * (len(moving) - data)
        if i in rows.entries:
            by_rows += _entries(step) * columns * (READ + SLICED * len(entering_slices))
            by_rows += CALLS * len(entering_slices)
    return by_rows, by_tangents


_PRODUCTS = {
    aten.mm.default: (0, 1),
    aten.bmm.default: (0, 1),
    aten.addmm.default: (1, 2),
    aten.baddbmm.default: (1, 2),
    aten.convolution.default: (0, 1),
}


def _factors(step: Step) -> list[int]:
    """The steps that are the factors of a product."""
    return [a.step for a in (step.args[k] for k in _PRODUCTS.get(step.op, ())) if type(a) is Ref]


def _entries(step: Step) -> int:
    return math.prod(step.shape) if all(type(n) is int for n in step.shape) else 0


def _work(plan: PassPlan, i: int) -> int:
    """The multiplications of a product, or the entries of any other value."""
    steps, step = plan.program.steps, plan.program.steps[i]
    entries, factors = _entries(step), _factors(step)
    if step.op is aten.convolution.default:
        return entries * math.prod(steps[factors[1]].shape[1:])
    if factors:
        return entries * int(steps[factors[0]].shape[-1])
    return entries * GATE
