"""The cache of a model's traces: which trace a batch uses, and when a stale one is renewed."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from gnewton.backend import is_exhausted
from gnewton.summary.isolation import preserve_random_streams, without_side_effects
from gnewton.summary.problem import Problem, Request
from gnewton.summary.tangent import checks
from gnewton.summary.tangent.compiled import CompiledPasses
from gnewton.summary.tangent.passes import forward
from gnewton.summary.tangent.plan import PassPlan, make_plan, tangent_bytes
from gnewton.summary.tangent.program import Program, TraceError, same_operations, same_program
from gnewton.summary.tangent.trace_guard import OperationNames, computed_name
from gnewton.summary.tangent.tracing import trace

log = logging.getLogger(__name__)

RENEWALS = 8  # of traces in one summary: of the whole batch, and of its parts
KEPT = 4  # traces of one kind of batch, for different attributes
IDLE = 3  # changes without effect, after which an attribute is ignored
RESTLESS = 3  # consecutive summaries that needed a new trace, after which new ones are not compiled

Attributes = dict[tuple[str, str], Any]
Result = TypeVar("Result")


class StaleTrace(Exception):
    """The model no longer computes what its trace says.

    Attributes:
        trace: the trace.
        request: the batch, or the part of one, that showed it.
    """

    def __init__(self, trace: Trace, request: Request) -> None:
        super().__init__("the trace is stale")
        self.trace = trace
        self.request = request


@dataclass(eq=False)
class Trace:
    """A planned program and what is known of it.

    Attributes:
        plan: the plan of the passes over the program.
        bytes: peak memory of the tangents.
        compiled: the compiled passes; None where they are not compiled.
        names: names of the operations, to recognise those of the model.
        checked: whether the gradient has been compared with that of the model.
        uses: number of primal passes after which the trace still held.
        parts: the least number of parts of its batch, after memory was exhausted with fewer.
        separable: whether the samples of its batch separate; None while unknown.
        rounding: the largest gap between the losses that is rounding, relative, where operations cannot be
            compared; else None.
    """

    plan: PassPlan
    bytes: int
    compiled: CompiledPasses | None
    names: OperationNames
    checked: bool
    uses: int = 0
    parts: int = 1
    separable: bool | None = None
    rounding: float | None = None

    @property
    def program(self) -> Program:
        """The traced loss."""
        return self.plan.program


@dataclass
class BatchKind:
    """What is known of one kind of batch: an error, or traces with the attributes they hold for."""

    error: str = ""
    traces: list[tuple[Attributes, Trace]] = field(default_factory=list)
    renewals: int = 0  # consecutive summaries that needed a new trace


class TraceCache:
    """Traces by shapes, precision, device and the settings of every module.

    Every summary compares its trace with the model, operation by operation
    (:mod:`gnewton.summary.tangent.trace_guard`). Where they differ the trace is replaced. Plain attributes of
    modules (numbers, flags, names) select among several traces before that: where an attribute has changed,
    loss and gradient of the trace are compared with those of the model, and a difference adds a new trace.

    Args:
        problem: model, loss and partition.
        third: whether third derivatives are formed.
        diagonal: whether only the diagonal of the Hessian is kept.
        compiled: whether the passes are compiled.
        planner: plans the passes over a program; None: :func:`make_plan`.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        third: bool,
        diagonal: bool,
        compiled: bool,
        planner: Callable[..., PassPlan] | None = None,
    ) -> None:
        self._planner = planner
        self._problem = problem
        self._third = third
        self._diagonal = diagonal
        self._compiled = compiled
        self._kinds: dict[Any, BatchKind] = {}
        self._idle: dict[tuple[str, str], int] = {}
        self._latest: tuple[weakref.ref[Request] | None, Any] = (None, None)  # a request, and its key

    def __iter__(self) -> Iterator[Trace]:
        return (kept for kind in self._kinds.values() for _, kept in kind.traces)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def get(self, request: Request) -> Trace:
        """The trace for a batch.

        Raises:
            TraceError: if there is none; the same error at every later call with this kind of batch.
        """
        kind = self._kind(request)
        if kind.error:
            raise TraceError(kind.error)
        now = self._attributes()
        known = next((kept for then, kept in reversed(kind.traces) if then == now), None)
        return known or self._newest_if_valid(kind, now, request) or self._trace_anew(kind, request)

    def refuse(self, kind: Any, reason: str) -> None:
        """Make :meth:`get` raise an error for every batch of a kind; with an empty reason it tries again."""
        self._kinds.setdefault(kind, BatchKind()).error = reason

    def is_refused(self, kind: Any) -> bool:
        """Whether :meth:`get` raises for a kind of batch without trying."""
        return kind in self._kinds and bool(self._kinds[kind].error)

    # --- comparison with the model --------------------------------------------------------------------------

    def confirm(
        self,
        kept: Trace,
        request: Request,
        leaves: Mapping[str, Tensor],
        values: Sequence[Any],
        *,
        blank: bool = False,
    ) -> None:
        """Compare a trace with the model, by the values of its primal pass for a batch.

        ``blank`` means that ``values`` are those of random steps alone. Where the model has backward passes
        of its own, the gradients are compared as well.

        Raises:
            StaleTrace: if the model computes something else.
            TraceError: if a new trace does not reproduce the model, or a gradient differs.
        """
        self._confirm_loss(kept, request, leaves, values, blank=blank)
        if kept.program.own_functions:
            self._check(kept, request)
            if kept.uses == 0:
                self._check(kept, request, nearby=True)

    def _confirm_loss(
        self,
        kept: Trace,
        request: Request,
        leaves: Mapping[str, Tensor],
        values: Sequence[Any],
        *,
        blank: bool,
    ) -> None:
        trees = (self._problem.constants(), *request.batch)
        names = kept.names
        if kept.rounding is None:
            try:
                name = computed_name(self._problem, names, trees, leaves, values, blank=blank)
            except Exception as error:  # the model may not support the mode it runs under
                if is_exhausted(error):
                    raise
                log.info("summary: operations cannot be compared (%s), losses are", type(error).__name__)
                name = None
            if name is not None and names.result is not None:
                if name != names.result:
                    raise StaleTrace(kept, request)
                kept.uses += 1
                return
            if name is not None:  # the first time
                if name != kept.program.loss and not kept.checked:
                    self._check(kept, request)
                names.result = name
                return
            kept.rounding = 0.0
            if not kept.checked:
                self._check(kept, request)
        if blank or kept.names.draws:  # the same draws as the model
            with without_side_effects(self._problem), torch.no_grad():
                values = forward(kept.program, leaves, pytree.tree_leaves(trees))
        self._compare_losses(kept, request, values[kept.program.loss])

    def _compare_losses(self, kept: Trace, request: Request, loss: Tensor) -> None:
        """Compare the loss of the program with that of the model, by an ordinary forward pass.

        Their gap may be four times the largest one found to be rounding. A wider gap makes a new trace; if
        that is the same program, the gap was rounding.
        """
        eager = checks.eager_loss(self._problem, *request.batch)
        a, b = float(loss.detach()), float(eager)
        gap = abs(a - b)
        assert kept.rounding is not None
        if a == b or (a != a and b != b) or gap <= 4 * kept.rounding * abs(b):
            return
        with without_side_effects(self._problem):
            program = trace(self._problem, *request.batch)
        if not same_program(program, kept.program):
            raise StaleTrace(kept, request)
        self._check(kept, request)
        if b != 0 and gap == gap and gap != float("inf"):
            kept.rounding = gap / abs(b)

    def renewing(self, request: Request, compute: Callable[[], Result]) -> Result:
        """What ``compute`` returns, called again with a new trace where the one it used was stale.

        Raises:
            TraceError: if the model has no trace any more, or none that holds.
        """
        for renewal in range(RENEWALS):
            try:
                result = compute()
            except StaleTrace as stale:
                self._renew(stale)
                continue
            if renewal == 0:
                self._kind(request).renewals = 0
            return result
        raise TraceError("the loss is another one at every call")

    def _renew(self, stale: StaleTrace) -> None:
        """Replace a trace that no longer holds.

        Raises:
            TraceError: if the model has no trace any more.
        """
        request, old = stale.request, stale.trace
        kind = self._kind(request)
        self._idle.clear()
        kind.renewals += 1
        if kind.renewals == RESTLESS:
            log.info("summary: the loss changes from summary to summary; it is traced at each of them")
        now = self._attributes()
        program = self._trace(kind, request)
        same = next((kept for _, kept in kind.traces if same_program(kept.program, program)), None)
        if same is None:
            same = self._new_trace(program, checked=False, compiled=kind.renewals < RESTLESS)
            same.parts, same.separable = old.parts, old.separable
            if not same_operations(old.program, program):  # else only if the model does not match exactly
                self._check(same, request)
        elif same is old:  # the change has no effect on the derivatives
            same.names = OperationNames(old.program)
            same.checked = False
        others = [
            entry for entry in kind.traces if entry[1] is not same and (entry[1] is not old or old.uses > 1)
        ]  # a trace that held only once is unlikely to hold again
        kind.traces = [*others[1 - KEPT :], (now, same)]

    # --- tracing --------------------------------------------------------------------------------------------

    def _newest_if_valid(self, kind: BatchKind, now: Attributes, request: Request) -> Trace | None:
        """The newest trace, if the attributes that have changed since have no effect."""
        if not kind.traces:
            return None
        then, kept = kind.traces[-1]
        try:
            with without_side_effects(self._problem):
                checks.check_program(self._problem, kept.program, *request.batch)
        except TraceError:
            return None
        for name in now:
            if name in then and now[name] != then[name]:
                self._idle[name] = self._idle.get(name, 0) + 1
        kind.traces[-1] = self._attributes(), kept  # without those ignored from now on
        return kept

    def _trace_anew(self, kind: BatchKind, request: Request) -> Trace:
        now = self._attributes()
        with without_side_effects(self._problem):
            try:
                with preserve_random_streams(self._problem):
                    program = trace(self._problem, *request.batch)
                checks.check_program(self._problem, program, *request.batch)
            except TraceError as error:
                kind.error = str(error)  # not the error, whose frames hold tensors
                raise
        kept = self._new_trace(program, checked=True, compiled=True)
        kind.traces = [*kind.traces[1 - KEPT :], (now, kept)]
        return kept

    def _trace(self, kind: BatchKind, request: Request) -> Program:
        with without_side_effects(self._problem):
            try:
                return trace(self._problem, *request.batch)
            except TraceError as error:
                kind.error = str(error)
                raise

    def _new_trace(self, program: Program, *, checked: bool, compiled: bool) -> Trace:
        plan = (self._planner or make_plan)(
            program, self._problem.partition, third=self._third, diagonal=self._diagonal
        )
        passes = CompiledPasses(plan) if self._compiled and compiled else None
        return Trace(plan, tangent_bytes(plan), passes, OperationNames(program), checked)

    def _check(self, kept: Trace, request: Request, *, nearby: bool = False) -> None:
        """Compare the gradient of a trace with that of the model (:func:`checks.check_program`).

        Raises:
            TraceError: if they differ; the same error at every later call of this kind.
        """
        try:
            with without_side_effects(self._problem):
                checks.check_program(self._problem, kept.program, *request.batch, nearby=nearby)
        except TraceError as error:
            self._kind(request).error = str(error)
            raise
        kept.checked = True

    # --- kinds of batch -------------------------------------------------------------------------------------

    def _kind(self, request: Request) -> BatchKind:
        return self._kinds.setdefault(self.kind(request), BatchKind())

    def kind(self, request: Request) -> Any:
        """The key of a batch: what batches must have in common to share a trace."""
        of, key = self._latest
        if of is None or of() is not request:
            key = self._key(request)
            self._latest = weakref.ref(request), key
        return key

    def _key(self, request: Request) -> Any:
        leaves, spec = pytree.tree_flatten(
            (self._problem.parameters(), self._problem.constants(), *request.batch)
        )
        tensors = tuple(
            (x.shape, x.dtype, x.device, x.stride()) if isinstance(x, Tensor) else x for x in leaves
        )
        settings = tuple((name, type(m), m.training, m.extra_repr()) for name, m in self._modules())
        return tensors, str(spec), settings

    def _attributes(self) -> Attributes:
        """Every plain attribute of every module, except those whose changes had no effect."""
        return {
            (name, attribute): value
            for name, module in self._modules()
            for attribute, value in vars(module).items()
            if type(value) in (bool, int, float, str)
            and attribute[0] != "_"
            and self._idle.get((name, attribute), 0) < IDLE
        }

    def _modules(self) -> Iterator[tuple[str, nn.Module]]:
        yield from self._problem.model.named_modules()
        if isinstance(self._problem.loss_fn, nn.Module):
            yield from ((f"loss_fn.{name}", m) for name, m in self._problem.loss_fn.named_modules())
