"""One pass of power series through a program: the coefficients of the loss along each group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gnewton.backend import is_exhausted
from gnewton.errors import first_line
from gnewton.summary.tangent.accumulator import Accumulator
from gnewton.summary.tangent.plan import PassPlan
from gnewton.summary.tangent.program import TraceError
from gnewton.summary.taylor import series_composed, series_elementwise, series_products
from gnewton.summary.taylor.jet import Jet
from gnewton.summary.taylor.nested_rule import nested_rule
from gnewton.summary.taylor.series_linear import linear_rule
from gnewton.summary.taylor.taylor_rule import SERIES_RULES, NotApplicable, Result, SeriesSite

__all__ = ["coefficients", "series_composed", "series_elementwise", "series_products"]


def coefficients(
    plan: PassPlan,
    values: Sequence[Any],
    direction: Mapping[str, Tensor],
    order: int,
    positions: range,
) -> Tensor:
    """The Taylor coefficients c_1 … c_d of L(θ + t P_s u) in t, float64.

    Args:
        plan: the plan of a program.
        values: of all its steps.
        direction: u by parameter name.
        order: d >= 1.
        positions: of the groups that are taken, in the order of the plan.

    Returns:
        One row per position, (k, d).
    """
    program = plan.program
    steps, jets = program.steps, {}
    sums = plan.accumulator(values[program.loss].device)
    several: dict[int, list[Jet | None]] = {}
    for name, i in program.parameters.items():
        mine = [n for n, s in enumerate(plan.groups[name]) if s in positions]
        if steps[i].active and mine:
            rows = plan.seeds(name, direction[name], slice(mine[0], mine[-1] + 1))
            jets[i] = Jet(values[i], rows.merge().unsqueeze(0), rows.groups)
    for i, step in enumerate(steps):
        if step.active and step.op is not None:
            if step.output is not None:
                found: Any = several.get(step.reads[0])
                result: Result = None if found is None else found[step.output]
            else:
                result = _passed(plan, i, values, jets, order, sums)
            if isinstance(result, list):
                several[i] = result
            elif result is not None and result.degree:
                jets[i] = result
        for j in step.reads:
            if plan.last_tangent[j] == i:
                jets.pop(j, None)
                several.pop(j, None)
    out = torch.zeros(len(positions), order, dtype=torch.float64, device=sums.device)
    final = jets.get(program.loss)
    if final is not None:
        rows_of_groups = [s - positions.start for s in final.groups]
        out[rows_of_groups, : final.degree] = final.terms.reshape(final.degree, -1).T.double()
    return out


def _passed(
    plan: PassPlan,
    i: int,
    values: Sequence[Any],
    jets: Mapping[int, Jet],
    order: int,
    sums: Accumulator,
) -> Result:
    """The jets of the values of step i; None where no group moves it."""
    step = plan.program.steps[i]
    if not any(j in jets for j in step.reads):
        return None
    args, kwargs = plan.program.arguments(step, values)
    outputs = tuple(k for j in plan.outputs.get(i, ()) if type(k := plan.program.steps[j].output) is int)
    site = SeriesSite(step, args, kwargs, values[i], jets, order, outputs, sums)
    own = SERIES_RULES.get(step.op)
    try:
        for rule in (own, linear_rule, nested_rule):
            if rule is None:
                continue
            try:
                return rule(site)
            except NotApplicable:
                continue
    except (NotImplementedError, RuntimeError) as error:
        if is_exhausted(error):
            raise
        raise TraceError(
            f"no derivatives of order {order} of {step.op}: {first_line(error, with_type=True)}"
        ) from error
    raise TraceError(f"no derivatives of order {order} of {step.op}")
