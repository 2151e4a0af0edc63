"""The table of rules: how each ATen operation passes tangents on and what it adds to the summary."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from gnewton.summary.site import Site
from gnewton.summary.tangents import Tangent

Passed: TypeAlias = "Tangent | list[Tangent | None] | None"
RuleFunction = Callable[[Site], Passed]


@dataclass(frozen=True)
class Rule:
    """A rule of the table.

    Attributes:
        function: pushes the tangents of the arguments through, adds the contributions of the operation to
            ``site.sums``, and returns the tangent of the value (a list of them for several values).
        adjoint: whether it reads ``site.adjoint()``; linear operations do so only to take a gradient.
        takes_gradient: positions of arguments for which it adds ⟨∂L/∂θ, u⟩ itself when they are parameters
            (or views of parameters), so that the backward pass need not form ∂L/∂θ.
        view: whether a parameter seen through it may still be taken for a parameter.
    """

    function: RuleFunction
    adjoint: bool = False
    takes_gradient: tuple[int, ...] = ()
    view: bool = False


RULES: dict[Any, Rule] = {}


def rule(
    *ops: Any, adjoint: bool = False, takes_gradient: tuple[int, ...] = (), view: bool = False
) -> Callable[[RuleFunction], RuleFunction]:
    """Enter a function into the table as the rule of ``ops``."""

    def enter(function: RuleFunction) -> RuleFunction:
        for op in ops:
            RULES[op] = Rule(function, adjoint, takes_gradient, view)
        return function

    return enter


def overloads(*names: str) -> list[Any]:
    """The ATen overloads of these names ("add.Tensor") that this version of torch has."""
    import torch

    found = []
    for name in names:
        packet, _, overload = name.partition(".")
        operation = getattr(torch.ops.aten, packet, None)
        operation = getattr(operation, overload or "default", None)
        if operation is not None:
            found.append(operation)
    return found
