"""Where a rule works: one operation of the program, with its values, tangents and adjoint."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from gnewton.summary.accumulate import Accumulator
from gnewton.summary.graph import Ref, Step
from gnewton.summary.stacks import Stacks
from gnewton.summary.tangents import Tangent


class Site:
    """One step of the program as its rule sees it.

    Attributes:
        step: the operation.
        args, kwargs: its arguments, values filled in.
        value: what it returned.
        sums: where contributions to the summary go.
        stacks: where memory for large stacks comes from.
        third: whether second-order tangents are carried.
    """

    __slots__ = ("_adjoints", "_tangents", "args", "kwargs", "stacks", "step", "sums", "third", "value")

    def __init__(
        self,
        step: Step,
        args: list[Any],
        kwargs: dict[str, Any],
        value: Any,
        tangents: dict[int, Tangent],
        adjoints: dict[int | None, Tensor],
        sums: Accumulator,
        stacks: Stacks,
    ) -> None:
        self.step = step
        self.args = args
        self.kwargs = kwargs
        self.value = value
        self.sums = sums
        self.stacks = stacks
        self.third = sums.with_third
        self._tangents = tangents
        self._adjoints = adjoints

    def tangent(self, position: int) -> Tangent | None:
        """The tangent of the argument at ``position``; None where it does not move."""
        if position >= len(self.step.args):
            return None
        argument = self.step.args[position]
        return self._tangents.get(argument.step) if type(argument) is Ref else None

    def moving(self, position: int) -> Tangent:
        """The tangent of an argument that is known to move."""
        tangent = self.tangent(position)
        assert tangent is not None
        return tangent

    def tangent_of(self, argument: Any) -> Tangent | None:
        """The tangent of an argument given as it stands in ``step.args``, for arguments inside a list."""
        return self._tangents.get(argument.step) if type(argument) is Ref else None

    def argument(self, position: int, default: Any = None) -> Any:
        """The argument at ``position``, or the default where it was left out."""
        return self.args[position] if position < len(self.args) else default

    def adjoint(self, output: int | None = None) -> Tensor | None:
        """∂L/∂(value), or of one of several values; None where the loss does not depend on it."""
        return self._adjoints.get(output)
