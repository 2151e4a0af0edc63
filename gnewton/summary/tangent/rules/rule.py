"""What a rule is: a function that sees one operation of a program, and the table of all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from gnewton.summary.tangent.accumulator import Accumulator
from gnewton.summary.tangent.program import Path, Ref, Step, call_with
from gnewton.summary.tangent.tangent import Tangent


class OperationSite:
    """One operation of the program as its rule sees it: values, tangents and adjoint.

    Attributes:
        step: the operation.
        args, kwargs: its arguments, with the values of earlier steps.
        value: its result.
        sums: the sums to which a rule adds contributions to the summary.
        third: whether second-order tangents are carried.
    """

    __slots__ = ("_adjoints", "_tangents", "args", "kwargs", "step", "sums", "third", "value")

    def __init__(
        self,
        step: Step,
        args: list[Any],
        kwargs: dict[str, Any],
        value: Any,
        tangents: dict[int, Tangent],
        adjoints: dict[int | None, Tensor],
        sums: Accumulator,
    ) -> None:
        self.step = step
        self.args = args
        self.kwargs = kwargs
        self.value = value
        self.sums = sums
        self.third = sums.with_third
        self._tangents = tangents
        self._adjoints = adjoints

    def tangent(self, position: int) -> Tangent | None:
        """The tangent of the argument at ``position``; None where it does not depend on a parameter."""
        if position >= len(self.step.args):
            return None
        argument = self.step.args[position]
        return self._tangents.get(argument.step) if type(argument) is Ref else None

    def moving(self, position: int) -> Tangent:
        """The tangent of an argument that is known to have one."""
        tangent = self.tangent(position)
        assert tangent is not None
        return tangent

    def tangent_of(self, argument: Any) -> Tangent | None:
        """The tangent of an entry of ``step.args``, or of a list in it."""
        return self._tangents.get(argument.step) if type(argument) is Ref else None

    def argument(self, position: int, default: Any = None) -> Any:
        """The argument at ``position``, or the default where it is absent."""
        return self.args[position] if position < len(self.args) else default

    def adjoint(self, output: int | None = None) -> Tensor | None:
        """∂L/∂(value), or ∂L/∂(one of several values); None where the loss does not depend on it."""
        return self._adjoints.get(output)

    def moving_arguments(self) -> list[tuple[Path, Tensor, Tangent]]:
        """The arguments with a tangent, wherever they stand: path, value and tangent."""
        moving = []
        for path, j in self.step.references():
            tangent = self._tangents.get(j)
            if tangent is not None:
                key, *entry = path
                value = self.kwargs[key] if isinstance(key, str) else self.args[key]
                moving.append((path, value[entry[0]] if entry else value, tangent))
        return moving

    def call_with(self, paths: Sequence[Path], values: Sequence[Tensor]) -> Any:
        """The result of the operation with other tensors at ``paths``."""
        return call_with(self.step, self.args, self.kwargs, paths, values)


def results_of(value: Any) -> tuple[list[Any], list[int]]:
    """The values of an operation as a list, and the places of those that may have derivatives."""
    results = [value] if isinstance(value, Tensor) else list(value)
    smooth = [i for i, x in enumerate(results) if isinstance(x, Tensor) and x.is_floating_point()]
    return results, smooth


Passed: TypeAlias = "Tangent | list[Tangent | None] | None"
RuleFunction = Callable[[OperationSite], Passed]


@dataclass(frozen=True)
class TangentRule:
    """A rule of the table.

    Attributes:
        function: adds the contributions of the operation to ``site.sums`` and returns the tangent of the
            value (a list of tangents for several values).
        adjoint: whether it reads ``site.adjoint()``; linear operations do so only for gradient entries.
        takes_gradient: positions of arguments for which it adds ⟨∂L/∂θ, u⟩ where they are parameters (or
            views of parameters), so the backward pass need not form ∂L/∂θ.
        view: whether the result of a parameter still counts as that parameter.
        covers: the steps that it is for, if not all; the others go by the general rule.
    """

    function: RuleFunction
    adjoint: bool = False
    takes_gradient: tuple[int, ...] = ()
    view: bool = False
    covers: Callable[[Step], bool] | None = None


RULES: dict[Any, TangentRule] = {}


def rule_of(step: Step) -> TangentRule | None:
    """The own rule of a step; None where it goes by the general rule."""
    entry = RULES.get(step.op)
    return entry if entry is None or entry.covers is None or entry.covers(step) else None


def rule(
    *ops: Any,
    adjoint: bool = False,
    takes_gradient: tuple[int, ...] = (),
    view: bool = False,
    covers: Callable[[Step], bool] | None = None,
) -> Callable[[RuleFunction], RuleFunction]:
    """Enter a function into the table as the rule of ``ops``."""

    def enter(function: RuleFunction) -> RuleFunction:
        for op in ops:
            RULES[op] = TangentRule(function, adjoint, takes_gradient, view, covers)
        return function

    return enter


def overloads(*names: str) -> list[Any]:
    """The ATen overloads of these names ("add.Tensor") that this version of torch has."""
    operations = []
    for name in names:
        packet, _, overload = name.partition(".")
        operation = getattr(torch.ops.aten, packet, None)
        operation = getattr(operation, overload or "default", None)
        if operation is not None:
            operations.append(operation)
    return operations
