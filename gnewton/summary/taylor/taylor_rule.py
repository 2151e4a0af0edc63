"""What a rule for power series is: a function that sees one operation of a program, and their table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor

from gnewton.summary.tangent.accumulator import Accumulator
from gnewton.summary.tangent.program import Ref, Step
from gnewton.summary.tangent.rules.rule import overloads
from gnewton.summary.taylor.jet import Jet


@dataclass(frozen=True)
class SeriesSite:
    """One operation of the program as its rule sees it.

    Attributes:
        step: the operation.
        args, kwargs: its arguments, with the values of earlier steps.
        value: its result, or the list of its results.
        jets: the jets of earlier steps, by number; several for a step with several values.
        order: d.
        outputs: of several values, those that the loss depends on.
        sums: what the rules of the tangent engine take beside their tangents; they add nothing to it.
    """

    step: Step
    args: list[Any]
    kwargs: dict[str, Any]
    value: Any
    jets: Mapping[int, Jet]
    order: int
    outputs: tuple[int, ...]
    sums: Accumulator

    def jet(self, position: int) -> Jet | None:
        """The jet of the argument at ``position``; None where no group moves it."""
        argument = self.step.args[position] if position < len(self.step.args) else None
        return self.jets.get(argument.step) if type(argument) is Ref else None

    def moving(self, position: int) -> Jet:
        """The jet of an argument that is known to move."""
        jet = self.jet(position)
        assert jet is not None
        return jet

    def only_moves(self, *positions: int) -> bool:
        """Whether no argument but those at ``positions`` moves, and one of these does."""
        present = {j for j in self.step.reads if j in self.jets}
        named = {
            argument.step
            for p in positions
            if p < len(self.step.args) and type(argument := self.step.args[p]) is Ref
        }
        return bool(present) and present <= named

    def option(self, name: str, default: Any = None) -> Any:
        """An argument by its name in the schema of the operation."""
        if name in self.kwargs:
            return self.kwargs[name]
        for position, argument in enumerate(self.step.op._schema.arguments):
            if argument.name == name and position < len(self.args):
                return self.args[position]
        return default

    @property
    def first_value(self) -> Tensor:
        """The value, or the first of several."""
        return self.value if isinstance(self.value, Tensor) else self.value[0]


Result: TypeAlias = "Jet | list[Jet | None] | None"
SeriesRule = Callable[[SeriesSite], Result]

SERIES_RULES: dict[Any, SeriesRule] = {}


class NotApplicable(Exception):
    """A rule does not cover the arguments of an operation; the general rule does."""


def series_rule(*names: str) -> Callable[[SeriesRule], SeriesRule]:
    """Enter a function into the table as the rule of the operations of these names ("add.Tensor")."""

    def enter(function: SeriesRule) -> SeriesRule:
        SERIES_RULES.update(dict.fromkeys(overloads(*names), function))
        return function

    return enter
