"""The backward pass of several columns at once, step by step: stacked adjoints (k, *shape) of activations.

torch's batched backward pass lacks a batched form of many operations (activations, normalisations, softmax).
It calls them column by column and concatenates the results. The rules here avoid both
(:mod:`gnewton.summary.tangent.adjoint_rules`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor

from gnewton.summary.tangent.adjoint_rules import by_autograd, elementwise
from gnewton.summary.tangent.adjoint_site import BACKWARD, AdjointSite, Pending
from gnewton.summary.tangent.program import Program, aten
from gnewton.summary.tangent.rules.elementwise import ELEMENTWISE

Consumer = Callable[[int, Tensor], None]
"""(step, its stacked adjoint); the stack must not be changed or kept."""


class AdjointPass:
    """Backward passes of a program from some of its steps to others.

    Args:
        program: the program.
        ends: the steps whose adjoints are given.
        receivers: the steps whose adjoints are read.

    Attributes:
        possible: whether no step on the way draws random numbers anew when it is called again.
    """

    def __init__(self, program: Program, ends: Iterable[int], receivers: Iterable[int]) -> None:
        self._program = program
        self._ends = tuple(ends)
        self._receivers = frozenset(receivers)
        steps = program.steps
        self._leads = [False] * len(steps)  # to a receiver
        for i, step in enumerate(steps):
            self._leads[i] = step.active and (i in self._receivers or any(self._leads[j] for j in step.reads))
        self.possible = not any(
            step.random and step.op is not aten.native_dropout.default and self._leads[i]
            for i, step in enumerate(steps)
        )

    def run(self, values: Sequence[Any], stacks: Sequence[Tensor], consume: Consumer) -> None:
        """Send stacks (k, *shape) of adjoints of the ends back, and consume those of the receivers."""
        steps = self._program.steps
        pending = Pending(steps, values, len(stacks[0]))
        for at, stack in zip(self._ends, stacks, strict=True):
            pending.add(at, stack)
        for i in range(max(self._ends), -1, -1):
            arrived = pending.take(i)
            if arrived is None:
                continue
            stack, owned = arrived
            if i in self._receivers and isinstance(stack, Tensor):
                consume(i, stack)
            step = steps[i]
            through = [j for j in step.reads if self._leads[j]]
            if not through or step.op is None:
                continue
            if step.output is not None:
                pending.add_output(step.reads[0], step.output, stack, owned)
                continue
            site = AdjointSite(self._program, step, values, values[i], stack, owned, through, pending)
            if step.op in ELEMENTWISE and site.only_first:
                elementwise(site)
            else:
                BACKWARD.get(step.op, by_autograd)(site)
