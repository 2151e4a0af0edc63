"""The traces of a model that are kept between summaries, and how it is noticed that one no longer holds."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from gnewton.summary import checks, memory
from gnewton.summary.compiled import CompiledPasses
from gnewton.summary.engine import Plan, forward, make_plan
from gnewton.summary.graph import Program, TraceError
from gnewton.summary.problem import Problem
from gnewton.summary.replay import Names, computed_name
from gnewton.summary.same import same_operations, same_program
from gnewton.summary.tracing import trace
from gnewton.summary.undisturbed import restored_streams, undisturbed

log = logging.getLogger(__name__)

KEPT = 4  # traces of one shape, for different attributes
IDLE = 3  # changes without effect, after which an attribute is no longer looked at
RESTLESS = 3  # summaries in a row that needed a new trace, after which new ones are not compiled

Attributes = dict[tuple[str, str], Any]


class StaleTrace(Exception):
    """The model no longer computes what a trace of it says.

    Attributes:
        inputs, targets: the batch, or the part of one, by which it was noticed.
    """

    def __init__(self, trace: Trace, inputs: Any, targets: Any) -> None:
        super().__init__("the trace is stale")
        self.trace = trace
        self.inputs = inputs
        self.targets = targets


@dataclass(eq=False)
class Trace:
    """A program with its plan, the peak memory of its tangents, and whether its batch may be split."""

    program: Program
    plan: Plan
    bytes: int
    compiled: CompiledPasses | None
    names: Names
    checked: bool  # whether its gradient has been compared with the model's
    uses: int = 0  # primal passes after which it still held
    parts: int = 1  # into which its batch has to be split at least, as running out of memory has taught
    separable: bool | None = None
    rounding: float | None = None  # where its operations cannot be compared: the gap between the losses


@dataclass
class Shape:
    """What is known for one kind of input: an error, or traces with the attributes they hold for."""

    error: str = ""
    traces: list[tuple[Attributes, Trace]] = field(default_factory=list)
    renewals: int = 0  # summaries in a row that needed a new trace


class Traces:
    """Traces by shapes, precision, device and the settings of every module.

    Every summary compares its trace with the model, operation by operation (:mod:`gnewton.summary.replay`);
    where they differ the trace is replaced. Plain attributes of modules (numbers, flags, names) tell before
    that which of several traces to take: where one has changed, loss and gradient of the trace are compared
    with the model's, and if they differ there is a new trace beside the old ones.

    Args:
        problem: model, loss and partition.
        third, diagonal: what is asked of a summary.
        compiled: whether the passes are to be compiled.
    """

    def __init__(self, problem: Problem, *, third: bool, diagonal: bool, compiled: bool) -> None:
        self._problem = problem
        self._third = third
        self._diagonal = diagonal
        self._compiled = compiled
        self._shapes: dict[Any, Shape] = {}
        self._idle: dict[tuple[str, str], int] = {}

    def __iter__(self) -> Iterator[Trace]:
        return (kept for shape in self._shapes.values() for _, kept in shape.traces)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def get(self, inputs: Any, targets: Any) -> Trace:
        """The trace for a batch.

        Raises:
            TraceError: if there is none; the same error at every later call of this kind.
        """
        shape = self._shape(inputs, targets)
        if shape.error:
            raise TraceError(shape.error)
        now = self._attributes()
        known = next((kept for then, kept in reversed(shape.traces) if then == now), None)
        return known or self._confirmed(shape, now, inputs, targets) or self._added(shape, inputs, targets)

    def refuse(self, kind: Any, reason: str) -> None:
        """Let :meth:`get` raise an error for every batch of a kind; an empty reason lets it try again."""
        self._shapes.setdefault(kind, Shape()).error = reason

    def is_refused(self, kind: Any) -> bool:
        """Whether :meth:`get` raises for a kind of batch without trying."""
        return kind in self._shapes and bool(self._shapes[kind].error)

    # --- whether a trace still holds ------------------------------------------------------------------------

    def confirm(
        self,
        kept: Trace,
        inputs: Any,
        targets: Any,
        leaves: Mapping[str, Tensor],
        values: Sequence[Any],
        *,
        blank: bool = False,
    ) -> None:
        """Compare a trace with the model, by what its primal pass has given for a batch.

        ``blank`` says that ``values`` are those of random steps alone.

        Raises:
            StaleTrace: if the model computes something else.
            TraceError: if a new trace does not reproduce the model.
        """
        trees = (self._problem.constants(), inputs, targets)
        names = kept.names
        if kept.rounding is None:
            try:
                name = computed_name(self._problem, names, trees, leaves, values, blank=blank)
            except Exception as error:  # of the model's, under a mode that it may not bear
                if memory.is_exhausted(error):
                    raise
                log.info("summary: operations cannot be compared (%s), losses are", type(error).__name__)
                name = None
            if name is not None and names.result is not None:
                if name != names.result:
                    raise StaleTrace(kept, inputs, targets)
                kept.uses += 1
                return
            if name is not None:  # the first time
                if name != kept.program.loss and not kept.checked:
                    self._check(kept, inputs, targets)
                names.result = name
                return
            kept.rounding = 0.0
            if not kept.checked:
                self._check(kept, inputs, targets)
        if blank or kept.names.draws:  # the model is to draw the same
            with undisturbed(self._problem), torch.no_grad():
                values = forward(kept.program, leaves, pytree.tree_leaves(trees))
        self._compare_losses(kept, inputs, targets, values[kept.program.loss])

    def _compare_losses(self, kept: Trace, inputs: Any, targets: Any, loss: Tensor) -> None:
        """The second best: the loss of the program and the model's own, by an ordinary forward pass.

        Their gap may be four times the largest that has turned out to be rounding: where it is wider there
        is a new trace, and if that is the same, it was.
        """
        eager = checks.eager_loss(self._problem, inputs, targets)
        a, b = float(loss.detach()), float(eager)
        gap = abs(a - b)
        assert kept.rounding is not None
        if a == b or (a != a and b != b) or gap <= 4 * kept.rounding * abs(b):
            return
        with undisturbed(self._problem):
            program = trace(self._problem, inputs, targets)
        if not same_program(program, kept.program):
            raise StaleTrace(kept, inputs, targets)
        self._check(kept, inputs, targets)
        if b != 0 and gap == gap and gap != float("inf"):
            kept.rounding = gap / abs(b)

    def renew(self, stale: StaleTrace) -> None:
        """Replace a trace that no longer holds.

        Raises:
            TraceError: if the model has no trace any more.
        """
        inputs, targets, old = stale.inputs, stale.targets, stale.trace
        shape = self._shape(inputs, targets)
        self._idle.clear()
        shape.renewals += 1
        if shape.renewals == RESTLESS:
            log.info("summary: the loss changes from summary to summary; it is traced at each of them")
        now = self._attributes()
        program = self._trace(shape, inputs, targets)
        same = next((kept for _, kept in shape.traces if same_program(kept.program, program)), None)
        if same is None:
            same = self._kept(program, checked=False, compiled=shape.renewals < RESTLESS)
            same.parts, same.separable = old.parts, old.separable
            if not same_operations(old.program, program):  # else only if the model does not match it exactly
                self._check(same, inputs, targets)
        elif same is old:  # what has changed is no part of the derivatives
            same.names = Names(old.program)
            same.checked = False
        others = [
            entry for entry in shape.traces if entry[1] is not same and (entry[1] is not old or old.uses > 1)
        ]  # a trace that held once will hardly hold again
        shape.traces = [*others[1 - KEPT :], (now, same)]

    def settled(self, inputs: Any, targets: Any) -> None:
        """Note that a summary needed no new trace."""
        self._shape(inputs, targets).renewals = 0

    # --- tracing --------------------------------------------------------------------------------------------

    def _confirmed(self, shape: Shape, now: Attributes, inputs: Any, targets: Any) -> Trace | None:
        """The newest trace, if what has changed since has no effect."""
        if not shape.traces:
            return None
        then, kept = shape.traces[-1]
        try:
            with undisturbed(self._problem):
                checks.check_program(self._problem, kept.program, inputs, targets)
        except TraceError:
            return None
        for name in now:
            if name in then and now[name] != then[name]:
                self._idle[name] = self._idle.get(name, 0) + 1
        shape.traces[-1] = self._attributes(), kept  # without those that now are no longer looked at
        return kept

    def _added(self, shape: Shape, inputs: Any, targets: Any) -> Trace:
        now = self._attributes()
        with undisturbed(self._problem):
            try:
                with restored_streams(self._problem):
                    program = trace(self._problem, inputs, targets)
                checks.check_program(self._problem, program, inputs, targets)
            except TraceError as error:
                shape.error = str(error)  # not the error: its frames hold tensors
                raise
        kept = self._kept(program, checked=True, compiled=True)
        shape.traces = [*shape.traces[1 - KEPT :], (now, kept)]
        return kept

    def _trace(self, shape: Shape, inputs: Any, targets: Any) -> Program:
        with undisturbed(self._problem):
            try:
                return trace(self._problem, inputs, targets)
            except TraceError as error:
                shape.error = str(error)
                raise

    def _kept(self, program: Program, *, checked: bool, compiled: bool) -> Trace:
        plan = make_plan(program, self._problem.partition)
        passes = None
        if self._compiled and compiled:
            passes = CompiledPasses(program, plan, third=self._third, diagonal=self._diagonal)
        size = memory.tangent_bytes(program, plan, third=self._third)
        return Trace(program, plan, size, passes, Names(program), checked)

    def _check(self, kept: Trace, inputs: Any, targets: Any) -> None:
        """Compare the gradient of a trace with the model's, once.

        Raises:
            TraceError: if they differ; the same error at every later call of this kind.
        """
        try:
            with undisturbed(self._problem):
                checks.check_program(self._problem, kept.program, inputs, targets)
        except TraceError as error:
            self._shape(inputs, targets).error = str(error)
            raise
        kept.checked = True

    # --- kinds of input -------------------------------------------------------------------------------------

    def _shape(self, inputs: Any, targets: Any) -> Shape:
        return self._shapes.setdefault(self.kind(inputs, targets), Shape())

    def kind(self, inputs: Any, targets: Any) -> Any:
        """What batches must have in common to share a trace, as a key."""
        leaves, spec = pytree.tree_flatten(
            (self._problem.parameters(), self._problem.constants(), inputs, targets)
        )
        tensors = tuple(
            (x.shape, x.dtype, x.device, x.stride()) if isinstance(x, Tensor) else x for x in leaves
        )
        settings = tuple((name, type(m), m.training, m.extra_repr()) for name, m in self._modules())
        return tensors, str(spec), settings

    def _attributes(self) -> Attributes:
        """Every plain attribute of every module, but for those that have changed without effect before."""
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
