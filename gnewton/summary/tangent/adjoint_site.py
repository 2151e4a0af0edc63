"""One step of the backward pass of stacked adjoints: what its rule sees, and where it sends them on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gnewton.summary.tangent.program import Program, Ref, Step
from gnewton.summary.tangent.rules.rule import overloads
from gnewton.summary.tangent.tangent import fold_rows


class Pending:
    """The adjoints that later steps have sent so far, each with whether its memory may be overwritten."""

    def __init__(self, steps: Sequence[Step], values: Sequence[Any], count: int) -> None:
        self._steps = steps
        self._values = values
        self._count = count
        self._single: dict[int, tuple[Tensor, bool]] = {}
        self._several: dict[int, dict[int, tuple[Tensor, bool]]] = {}

    def take(self, i: int) -> tuple[Any, bool] | None:
        """The adjoint of a step: a stack, or those of several values by their number."""
        if i in self._several:
            return {k: stack for k, (stack, _) in self._several.pop(i).items()}, False
        return self._single.pop(i, None)

    def add(self, i: int, stack: Tensor, owned: bool = False) -> None:
        """Add a stack to the adjoint of a step, in the type of its value.

        Args:
            i: the step.
            stack: what is added.
            owned: whether its memory belongs to no one else.
        """
        dtype = self._values[i].dtype
        if stack.dtype != dtype:
            stack, owned = stack.to(dtype), True
        self._single[i] = _sum(self._single.get(i), stack, owned)

    def add_output(self, i: int, k: int, stack: Tensor, owned: bool) -> None:
        """Add a stack to the adjoint of one of several values of a step."""
        outputs = self._several.setdefault(i, {})
        outputs[k] = _sum(outputs.get(k), stack, owned)

    def buffer(self, i: int, like: Tensor) -> Tensor:
        """The adjoint of a step as memory into which a part may be added; zeros where there is none."""
        present = self._single.get(i)
        if present is None:
            target = like.new_zeros(self._count, *self._values[i].shape)
        elif present[1]:
            return present[0]
        else:
            target = present[0].clone(memory_format=torch.contiguous_format)
        self._single[i] = target, True
        return target


def _sum(present: tuple[Tensor, bool] | None, stack: Tensor, owned: bool) -> tuple[Tensor, bool]:
    if present is None:
        return stack, owned
    if present[1]:
        return present[0].add_(stack), True
    return (stack.add_(present[0]) if owned else present[0] + stack), True


class AdjointSite:
    """One step of the way back: its values, its adjoint, and where to send those of its arguments.

    Attributes:
        program: the program.
        step: the step.
        values: the values of all steps.
        value: that of this one.
        stack: its adjoint (k, *shape); for a step with several values, those by number.
        owned: whether this memory may be overwritten.
        through: the steps it reads that take an adjoint.
        args, kwargs: its arguments, with the values of earlier steps.
        pending: the adjoints that have been sent so far.
    """

    def __init__(
        self,
        program: Program,
        step: Step,
        values: Sequence[Any],
        value: Any,
        stack: Any,
        owned: bool,
        through: Sequence[int],
        pending: Pending,
    ) -> None:
        self.program = program
        self.step = step
        self.values = values
        self.value = value
        self.stack = stack
        self.owned = owned
        self.through = through
        self.args, self.kwargs = program.arguments(step, values)
        self.pending = pending

    def argument(self, position: int, default: Any = None) -> Any:
        """The argument at a position, or the default where it is absent."""
        return self.args[position] if position < len(self.args) else default

    def leads(self, position: int) -> bool:
        """Whether the argument at a position takes an adjoint."""
        argument = self.step.args[position] if position < len(self.step.args) else None
        return type(argument) is Ref and argument.step in self.through

    @property
    def only_first(self) -> bool:
        """Whether no argument but the first takes an adjoint."""
        return not any(self.leads(k) for k in range(1, len(self.step.args)))

    def send(self, position: int, stack: Tensor, owned: bool) -> None:
        """Add to the adjoint of the argument at a position, summed over what it was broadcast along."""
        source = self.step.args[position].step
        folded = fold_rows(stack, self.values[source].shape)
        self.pending.add(source, folded, owned or folded.numel() < stack.numel())

    def buffer(self) -> Tensor:
        """Memory for the adjoint of the first argument, into which parts are added."""
        return self.pending.buffer(self.step.args[0].step, self.stack)

    def target(self) -> Tensor:
        """Memory in the shape of the adjoint, its own if that may be overwritten."""
        return self.stack if self.owned else torch.empty_like(self.stack)


BACKWARD: dict[Any, Callable[[AdjointSite], None]] = {}
"""The rules by operation."""


def back(*names: str) -> Callable[[Callable[[AdjointSite], None]], Callable[[AdjointSite], None]]:
    """Enter a function into the table as the rule of the operations of these names."""

    def enter(function: Callable[[AdjointSite], None]) -> Callable[[AdjointSite], None]:
        BACKWARD.update(dict.fromkeys(overloads(*names), function))
        return function

    return enter
