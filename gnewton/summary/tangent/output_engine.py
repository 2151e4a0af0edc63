"""Gauss–Newton and Fisher matrices: by adjoint rows or by tangents, whichever takes fewer operations."""

from __future__ import annotations

import logging
import math
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from gnewton.errors import InputError
from gnewton.summary.cut import FLAT, NOT_CONVEX, CutProblem, check_convex
from gnewton.summary.group_parts import check_carried
from gnewton.summary.problem import Request
from gnewton.summary.result import MOST_SQUARED, Rounding, Summary
from gnewton.summary.tangent.adjoint_rows import (
    RowPlan,
    find_places,
    find_slots,
    form_rows,
    make_row_plan,
)
from gnewton.summary.tangent.engine import TangentEngine
from gnewton.summary.tangent.output_factors import Columns
from gnewton.summary.tangent.passes import forward
from gnewton.summary.tangent.plan import PassPlan, make_cut_plan, model_part
from gnewton.summary.tangent.program import Ref, Step, aten
from gnewton.summary.tangent.trace_cache import Trace


class OutputTangents(TangentEngine):
    """Gauss–Newton matrices by stacked tangents, for every model and loss, coupled samples included.

    The passes are those of the tangent engine. The steps of the model contribute nothing, so neither their
    adjoints nor second-order tangents are formed.

    Args:
        problem: model, loss and partition.
        diagonal: whether to keep only the diagonal of the matrix.
        max_memory, reduction, tf32: as in :class:`TangentEngine`.
    """

    def __init__(
        self, problem: CutProblem, *, diagonal: bool, max_memory: int | None, reduction: str, tf32: bool
    ) -> None:
        super().__init__(
            problem,
            third=False,
            diagonal=diagonal,
            max_memory=max_memory,
            reduction=reduction,
            tf32=tf32,
            planner=make_cut_plan,
        )

    def _summarize_whole(self, trace: Trace, request: Request) -> Summary:
        return self._checked(trace, super()._summarize_whole(trace, request))

    def _summarize_part(self, trace: Trace, part: Request, draws: Mapping[int, Tensor]) -> Summary:
        return self._checked(trace, super()._summarize_part(trace, part, draws))

    def _checked(self, trace: Trace, summary: Summary) -> Summary:
        """The summary, once it is known that there is a Gauss–Newton matrix.

        Raises:
            InputError: if the loss is linear in the outputs, or not convex in them.
        """
        program = trace.program
        if program.loss in model_part(program) or not trace.plan.adjoints:
            raise InputError(FLAT)
        check_convex(summary.hessian, trace.plan.dtypes)
        return replace(summary, matrix="gauss_newton")


log = logging.getLogger(__name__)

SIDE = 512  # groups of a block of the matrix
COPIES = 4  # of the rows and the matrix, at the same time

Way = Literal["auto", "rows", "tangents"]


class OutputEngine(OutputTangents):
    """Gauss–Newton and Fisher matrices of a model's outputs.

    Args:
        problem: model, loss and partition.
        matrix: "gauss_newton" or "fisher".
        draws: labels drawn for each sample, for "fisher".
        diagonal, max_memory, reduction, tf32: as in :class:`OutputTangents`.
        way: "rows" or "tangents" to take one way alone where it applies (for tests).
    """

    def __init__(
        self, problem: CutProblem, *, matrix: str, draws: int, way: Way = "auto", **limits: Any
    ) -> None:
        super().__init__(problem, **limits)
        self.matrix = matrix
        self.way: Way = way
        self.last_way = ""
        self.generator: torch.Generator | None = None
        self._draws = draws
        self._diagonal: bool = limits["diagonal"]
        self._rows: weakref.WeakKeyDictionary[Trace, RowPlan | None] = weakref.WeakKeyDictionary()
        self._calls: weakref.WeakKeyDictionary[Trace, int] = weakref.WeakKeyDictionary()

    def _summarize_whole(self, trace: Trace, request: Request) -> Summary:
        summary = self._by_rows(trace, request, {})
        if summary is None:
            check_carried(self.problem.partition, f"the {self.matrix} matrix without rows of samples")
            return super()._summarize_whole(trace, request)
        return summary

    def _summarize_part(self, trace: Trace, part: Request, draws: Mapping[int, Tensor]) -> Summary:
        summary = self._by_rows(trace, part, draws)
        if summary is None:
            check_carried(self.problem.partition, f"the {self.matrix} matrix without rows of samples")
            return super()._summarize_part(trace, part, draws)
        return summary

    def _bytes(self, whole: Trace, request: Request) -> int:
        """The memory of the rows, with the copies that are held at once, or that of the tangents."""
        rows = self._plan(whole, request)
        if rows is None or rows.coupled or not self._takes_rows(whole, rows):
            return super()._bytes(whole, request)
        columns = self._draws + 1 if self.matrix == "fisher" else rows.width
        size = len(whole.plan.order)
        return 8 * COPIES * size * (rows.samples * columns + size)

    def _plan(self, trace: Trace, request: Request) -> RowPlan | None:
        """The plan of the rows, where they are possible and take fewer operations."""
        if trace not in self._rows:
            program = trace.program
            if program.loss in model_part(program):
                raise InputError(FLAT)
            skipped = len(self.problem.constants())
            rows = make_row_plan(trace.plan, program.inputs[skipped:], request.batch_size)
            self._rows[trace] = rows
        return self._rows[trace]

    def _takes_rows(self, trace: Trace, rows: RowPlan) -> bool:
        """Whether rows are to be formed: for labels always, else where they are possible and cheaper."""
        if self.matrix == "fisher":
            return True
        return not rows.coupled and rows.convex and self._cheaper(trace, rows)

    def _cheaper(self, trace: Trace, rows: RowPlan) -> bool:
        if self.way != "auto":
            return self.way == "rows"
        by_rows, by_tangents = operations(trace.plan, rows, max(rows.width - 1, 1))
        return by_rows < by_tangents

    def _by_rows(self, trace: Trace, request: Request, draws: Mapping[int, Tensor]) -> Summary | None:
        """The summary by adjoint rows; None where tangents are taken."""
        rows = self._plan(trace, request)
        fisher = self.matrix == "fisher"
        if fisher and rows is None:
            raise InputError(
                "summary: curvature=fisher: the loss must be a likelihood of outputs of the model that have "
                "a row for each sample, and read no parameter; use curvature=gauss_newton"
            )
        self.last_way = "tangents"
        if rows is None or not self._takes_rows(trace, rows):
            return None
        program = trace.program
        leaves = {name: p.detach().requires_grad_() for name, p in self.problem.parameters().items()}
        with torch.set_grad_enabled(not rows.way_back.possible):
            values = forward(program, leaves, self.problem.leaves(request), draws)
        self.traces.confirm(trace, request, leaves, values)
        device = self.problem.device()
        calls = self._calls[trace] = self._calls.get(trace, 0) + 1
        if calls & (calls - 1) == 0 and not rows.coupled:  # the 1st, 2nd, 4th, 8th … time
            generator = torch.Generator(device).manual_seed(calls)
            if not find_places(rows, values, generator):
                log.info(
                    "summary: samples are coupled: the %s matrix is formed without rows of samples",
                    self.matrix,
                )
        if calls & (calls - 1) == 0:
            generator = torch.Generator(device).manual_seed(calls)
            find_slots(trace.plan, rows, values, request.direction, generator)
        if rows.coupled and not fisher:
            return None
        self.last_way = "rows"
        columns = self._columns(rows, values)
        if columns is None:
            self.last_way = "tangents"
            return None
        return self._sum(trace, rows, values, columns, request)

    def _columns(self, rows: RowPlan, values: list[Any]) -> Columns | None:
        """The columns of the matrix; None where the loss is not convex in the outputs of a sample.

        The loss may still be convex on average; the tangents tell.
        """
        if self.matrix == "fisher":
            generator = self.generator or torch.Generator(self.problem.device()).manual_seed(0)
            return rows.labels.columns(values, self._draws, generator)
        try:
            return rows.loss.columns(values)
        except InputError as error:
            if self.way == "rows" or str(error) != NOT_CONVEX:
                raise
        rows.convex = False
        return None

    def _sum(
        self, trace: Trace, rows: RowPlan, values: list[Any], columns: Columns, request: Request
    ) -> Summary:
        plan = trace.plan
        joined = bool(rows.coupled)
        limit = self.max_memory
        formed, noise = form_rows(
            plan, rows, values, columns.stacks, request.direction, joined=joined, limit=limit
        )
        index = torch.tensor(plan.positions, device=formed.device)
        formed, noise = formed[index].double(), noise[index]
        shares = formed[:, :, 0]
        weights = columns.weights[:, :1].T if joined else columns.weights.T
        scaled = formed * weights
        loss: Tensor = values[plan.program.loss].detach().double()
        rounding = Rounding.of(plan.dtypes, loss.device)
        matrix, sizes, squares = _moments(formed, scaled, self._diagonal)
        known: dict[str, Any] = {}
        if not joined:
            known = {
                "samples": loss.new_tensor(float(rows.samples)),
                "gradient_squares": shares @ shares.T,
                "hessian_squares": squares,
            }
            known = {name: entries for name, entries in known.items() if entries is not None}
        return Summary(
            gradient=shares.sum(1),
            hessian=matrix,
            third=None,
            loss=loss,
            gradient_noise=noise,
            hessian_noise=rounding.curved * sizes,
            matrix=self.matrix,
            **known,
        )


def _moments(formed: Tensor, scaled: Tensor, diagonal: bool) -> Sequence[Any]:
    """Σ_nk w r rᵀ, the sum of the magnitudes of its terms, and Σ_n of the squares of Σ_k w r rᵀ.

    With many groups the second is a bound, by the inequality of Cauchy and Schwarz, and the third is None.
    """
    if diagonal:
        every = (scaled * formed).sum(2)
        return every.sum(1), every.abs().sum(1), every.square().sum(1)
    matrix = symmetric_product(scaled.flatten(1), formed.flatten(1))
    if len(matrix) > MOST_SQUARED:
        roots = matrix.diagonal().clamp_min(0).sqrt()
        return matrix, torch.outer(roots, roots), None
    sizes = scaled.abs().flatten(1) @ formed.abs().flatten(1).T
    squares = torch.zeros_like(matrix)
    width = max(1, (1 << 22) // max(len(matrix) ** 2, 1))
    for start in range(0, formed.shape[1], width):
        at = slice(start, start + width)
        by_sample = torch.bmm(scaled[:, at].transpose(0, 1), formed[:, at].permute(1, 2, 0))
        squares += by_sample.square_().sum(0)
    return matrix, sizes, squares


def symmetric_product(a: Tensor, b: Tensor) -> Tensor:
    """abᵀ of two (S, n) matrices where it is symmetric: exactly so, as only one half is formed."""
    size = len(a)
    matrix = a.new_empty(size, size)
    for start in range(0, size, SIDE):
        stop = min(start + SIDE, size)
        strip = a[start:stop] @ b[start:].T
        square = strip[:, : stop - start]
        matrix[start:stop, start:stop] = (square + square.T) / 2
        rest = strip[:, stop - start :]
        matrix[start:stop, stop:] = rest
        matrix[stop:, start:stop] = rest.T
    return matrix


# --- the cost of the two ways, counted in operations --------------------------------------------------------

GATE = 8  # multiplications that cost as much as one entry of an element-wise pass
READ = 4  # and as much as reading an entry


def operations(plan: PassPlan, rows: RowPlan, columns: int) -> tuple[float, float]:
    """Operations of the rows of ``columns`` columns, and of the tangents of all groups to the outputs.

    Rows take a backward product of every column for each factor of a step that is no parameter, the product
    of every direction with the data, and their inner products with the columns. They include the gradient.
    Tangents take a product of every group that a factor depends on, and one more for the gradient. They form
    slices one by one, in three passes over their parameter. Views cost nothing.
    """
    program = plan.program
    steps = program.steps
    started: list[frozenset[int]] = [frozenset()] * len(steps)
    by_rows = by_tangents = 0.0
    for name, i in program.parameters.items():
        started[i] = frozenset(plan.groups[name])
        if name in plan.slicing:
            by_tangents += 3.0 * _work(plan, i) * len(started[i])
    model = model_part(program)
    entering = set(rows.steps)
    parameters_alone = set(program.parameters.values()) | entering - set(rows.entries)
    for i, step in enumerate(steps):
        if not step.active or i not in model or step.op is None:
            continue
        started[i] = frozenset().union(*(started[j] for j in step.reads))
        if step.output is not None or plan.rules[i].view or getattr(step.op, "is_view", False):
            continue
        size, moving = float(_work(plan, i)), [j for j in step.reads if steps[j].active]
        factors = _factors(step)
        if factors:
            moving = [j for j in moving if j in factors]
            by_tangents += size * sum(len(started[j]) + 1 for j in moving)
        else:
            by_tangents += size * (len(started[i]) + 1)
        data = sum(j not in parameters_alone for j in moving)
        by_rows += size * columns * (data if factors else min(data, 1))
        if i in entering:
            by_rows += size * (len(moving) - data)
        if i in rows.entries:
            by_rows += _entries(step) * columns * READ
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
