"""The traces of a model that are kept between summaries, and how it is noticed that one no longer holds."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from gnewton.summary import checks, memory
from gnewton.summary.compiled import CompiledPasses
from gnewton.summary.engine import Plan, make_plan
from gnewton.summary.graph import Program, TraceError
from gnewton.summary.problem import Problem, untouched
from gnewton.summary.result import SummaryError
from gnewton.summary.tracing import trace

log = logging.getLogger(__name__)

RECHECK = 500  # summaries from one trace before it is compared with the model again
KEPT = 4  # traces of one shape, for different attributes
IDLE = 3  # changes without effect, after which an attribute is no longer looked at

Attributes = dict[tuple[str, str], Any]


@dataclass
class Trace:
    """A program with its plan, the peak memory of its tangents, and whether its batch may be split."""

    program: Program
    plan: Plan
    bytes: int
    compiled: CompiledPasses | None
    uses: int = 0
    parts: int = 1  # into which its batch has to be split at least, as running out of memory has taught
    separable: bool | None = None


@dataclass
class Shape:
    """What is known for one kind of input: an error, or traces with the attributes they hold for."""

    error: TraceError | None = None
    traces: list[tuple[Attributes, Trace]] = field(default_factory=list)


class Traces:
    """Traces by shapes, precision, device and the settings of every module.

    Plain attributes of modules (numbers, flags, names) may decide what a model computes, or count calls.
    Where one has changed, loss and gradient of the trace are compared with the model's, at the cost of two
    gradients: if they agree the trace is kept, else there is a new one.

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
        return (made for shape in self._shapes.values() for _, made in shape.traces)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def get(self, inputs: Any, targets: Any) -> Trace:
        """The trace for a batch.

        Raises:
            TraceError: if there is none; the same error at every later call of this kind.
            SummaryError: if the trace no longer is that of the model.
        """
        shape = self._shapes.setdefault(self._key(inputs, targets), Shape())
        if shape.error is not None:
            raise shape.error
        now = self._attributes()
        found = next((made for then, made in shape.traces if then == now), None)
        if found is None:
            found = self._confirmed(shape, now, inputs, targets) or self._added(shape, now, inputs, targets)
        found.uses += 1
        if found.uses % RECHECK == 0 and (reason := self._disagreement(found, inputs, targets)):
            raise SummaryError(f"summary: the trace is stale: {reason}")
        return found

    def _confirmed(self, shape: Shape, now: Attributes, inputs: Any, targets: Any) -> Trace | None:
        """The newest trace, if what has changed since has no effect."""
        if not shape.traces:
            return None
        then, made = shape.traces[-1]
        if self._disagreement(made, inputs, targets):
            return None
        for name in now:
            if name in then and now[name] != then[name] and not isinstance(now[name], float):
                self._idle[name] = self._idle.get(name, 0) + 1
        shape.traces[-1] = self._attributes(), made  # without those that now are no longer looked at
        return made

    def _added(self, shape: Shape, now: Attributes, inputs: Any, targets: Any) -> Trace:
        try:
            with untouched(self._problem.device()):
                program = trace(self._problem, inputs, targets)
                checks.check_program(self._problem, program, inputs, targets)
        except TraceError as error:
            shape.error = error
            raise
        plan = make_plan(program, self._problem.partition)
        compiled = None
        if self._compiled:
            compiled = CompiledPasses(program, plan, third=self._third, diagonal=self._diagonal)
        made = Trace(program, plan, memory.tangent_bytes(program, plan, third=self._third), compiled)
        shape.traces = [*shape.traces[1 - KEPT :], (now, made)]
        return made

    def _disagreement(self, made: Trace, inputs: Any, targets: Any) -> str:
        """How a trace differs from the model; empty if it does not."""
        try:
            with untouched(self._problem.device()):
                checks.check_program(self._problem, made.program, inputs, targets)
        except TraceError as error:
            return str(error)
        return ""

    def _key(self, inputs: Any, targets: Any) -> Any:
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
