"""Where derivatives of high order along the groups are requested: :func:`loss_derivatives`.

One pass of power series through the traced program gives them all (:func:`coefficients`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gnewton.arguments import check_name, check_number, check_whole, explained
from gnewton.backend import is_exhausted, memory_limit
from gnewton.errors import first_line
from gnewton.partition import PartitionChoice, chosen_partition
from gnewton.summary.api import Takeover
from gnewton.summary.group_parts import sums_by_group
from gnewton.summary.isolation import exact_products, without_side_effects
from gnewton.summary.problem import Direction, Forward, LossFunction, Problem, Request
from gnewton.summary.reference import reference_derivatives
from gnewton.summary.result import SummaryError
from gnewton.summary.tangent.accumulator import Accumulator
from gnewton.summary.tangent.passes import forward
from gnewton.summary.tangent.plan import PassPlan
from gnewton.summary.tangent.program import TraceError
from gnewton.summary.tangent.trace_cache import Trace, TraceCache
from gnewton.summary.taylor import (  # noqa: F401 - they enter their rules into the table
    series_elementwise,
    series_joining,
)
from gnewton.summary.taylor.jet import Jet
from gnewton.summary.taylor.taylor_rule import (
    SERIES_RULES,
    NotApplicable,
    Result,
    SeriesSite,
    linear_rule,
    nested_rule,
)

HIGHEST = 8
"""The highest order."""

DerivativeEngine = Literal["auto", "taylor", "reference"]
DERIVATIVE_ENGINES = ("auto", "taylor", "reference")


class LossDerivatives:
    """Derivatives of the loss along each group, of one model, loss and partition, batch after batch.

    Args:
        model, loss_fn, partition, forward: as for :class:`gnewton.summary.Summarizer`.
        engine: "taylor" propagates power series through the traced loss, at a cost that grows like d to d²
            with the order d, and raises where it cannot trace the model; "reference" differentiates the loss
            d times in reverse mode, group by group, at a cost that grows exponentially; "auto" uses
            "taylor" where it works and its result is finite or the loss is not, else "reference" with a line
            in the log.
        max_memory: bytes for the power series; groups are taken a few at a time, down to one, to stay
            within it. None: half of the free memory.

    Raises:
        InputError: for an unknown engine, or if model and partition disagree.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        partition: PartitionChoice,
        *,
        forward: Forward | None = None,
        engine: DerivativeEngine = "auto",
        max_memory: int | None = None,
    ) -> None:
        check_name("derivatives: engine", engine, DERIVATIVE_ENGINES)
        if max_memory is not None:
            check_number("derivatives: max_memory", max_memory, above=0)
        self.problem = Problem(model, loss_fn, chosen_partition(model, partition), forward)
        self.engine = engine
        self.max_memory = max_memory
        self.traces = TraceCache(self.problem, third=False, diagonal=True, compiled=False)
        self._takeover = Takeover("derivatives", engine)

    def derivatives(self, inputs: Any, targets: Any, direction: Direction, order: int) -> Tensor:
        """d^k/dt^k L(θ + t P_s u) at t = 0 for every group s and k = 0 … ``order``, (S, order + 1), float64.

        There are no side effects, as for :meth:`gnewton.summary.Summarizer.summarize`, and random draws such
        as dropout masks are drawn once. Column 0 is the loss itself.

        Raises:
            InputError: if ``order`` is not 1 … 8, or the direction does not fit.
            SummaryError: with engine="taylor", if the model cannot be traced, or an operation, which is
                named, has no derivatives of this order.
        """
        check_whole("derivatives: order", order, 1, HIGHEST)
        request = self.problem.request(inputs, targets, direction)
        if self.engine == "reference":
            return reference_derivatives(self.problem, request, order)
        derivatives, _ = self._takeover.attempt(request, lambda: self._by_series(request, order))
        if derivatives is None:
            return reference_derivatives(self.problem, request, order)
        return derivatives

    def _by_series(self, request: Request, order: int) -> Tensor:
        device = self.problem.device()
        with (
            without_side_effects(self.problem),
            exact_products(device, False),
            torch.autocast(device.type, enabled=False),
        ):
            derivatives = self.traces.renewing(
                request, lambda: self._by_trace(self.traces.get(request), request, order)
            )
        if self.engine == "auto" and derivatives[:, 0].isfinite().all() and not derivatives.isfinite().all():
            raise SummaryError("a derivative along a group is not finite, where the loss is")
        return derivatives

    def _by_trace(self, trace: Trace, request: Request, order: int) -> Tensor:
        plan, program = trace.plan, trace.program
        leaves = self.problem.parameters()
        with torch.no_grad():
            values = forward(program, leaves, self.problem.leaves(request))
        self.traces.confirm(trace, request, leaves, values)
        size = len(plan.order)
        loss: Tensor = values[program.loss].detach().double()
        factorials = [float(math.factorial(k)) for k in range(order + 1)]
        out = loss.new_zeros(size, order + 1)
        out[:, 0] = loss
        if not program.steps[program.loss].active:
            return out
        scales, direction = self._scaled(plan, request)
        with torch.no_grad():
            at_once = self._at_once(trace, order)
            for start in range(0, size, at_once):
                positions = range(start, min(size, start + at_once))
                out[start : positions.stop, 1:] = coefficients(plan, values, direction, order, positions)
        powers = torch.arange(order + 1, dtype=torch.float64, device=out.device)
        out *= scales[:, None] ** powers * out.new_tensor(factorials)
        return out[plan.positions]

    def _scaled(self, plan: PassPlan, request: Request) -> tuple[Tensor, dict[str, Tensor]]:
        """The length of P_s u by position, to the next power of two, and u with groups of length about one.

        Powers of a length far from one would leave the range of single precision; a power of two costs no
        digit.
        """
        partition, device = self.problem.partition, self.problem.device()
        squares = torch.zeros(len(partition), dtype=torch.float64, device=device)
        for name, u in request.direction.items():
            groups, sums = sums_by_group(partition, name, u.double().square())
            squares[list(groups)] += sums
        known = (squares > 0) & squares.isfinite()
        lengths = torch.where(known, squares, 1.0).sqrt().log2().round().exp2()
        direction = {}
        for name, u in request.direction.items():
            slicing, holders = partition.slicing.get(name), partition.holders[name]
            if slicing is None:
                factor = lengths[holders[0]]
            else:
                owners = torch.tensor(slicing.owners, device=device)
                factor = lengths[owners].view(slicing.view(u.dim()))
            direction[name] = (u.double() / factor).to(u.dtype)
        order = torch.tensor(plan.order, device=device)
        return lengths[order], direction

    def _at_once(self, trace: Trace, order: int) -> int:
        """The number of groups whose series fit into the memory at the same time."""
        size = len(trace.plan.order)
        whole = 2 * trace.bytes * order
        limit = memory_limit(whole, self.max_memory, self.problem.device())
        return max(1, min(size, int(size * limit / max(whole, 1))))


@explained(
    loss_fn="pass the function of (outputs, targets), such as torch.nn.functional.cross_entropy",
    direction="u by parameter name, such as the gradients",
)
def loss_derivatives(
    model: nn.Module,
    loss_fn: LossFunction,
    inputs: Any,
    targets: Any,
    partition: PartitionChoice,
    direction: Direction,
    order: int = 3,
    *,
    forward: Forward | None = None,
    engine: DerivativeEngine = "auto",
    max_memory: int | None = None,
) -> Tensor:
    """d^k/dt^k L(θ + t P_s u) at t = 0 for every group s and k = 0 … ``order`` <= 8, (S, order + 1), float64.

    One call. In a loop, use :class:`LossDerivatives`, which traces the model only once. Arguments, result and
    errors are those of :class:`LossDerivatives` and :meth:`LossDerivatives.derivatives`.
    """
    along_groups = LossDerivatives(
        model, loss_fn, partition, forward=forward, engine=engine, max_memory=max_memory
    )
    return along_groups.derivatives(inputs, targets, direction, order)


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
                outputs: Any = several.get(step.reads[0])
                result: Result = None if outputs is None else outputs[step.output]
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
    try:
        for rule in (SERIES_RULES.get(step.op), linear_rule, nested_rule):
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
