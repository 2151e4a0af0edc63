"""Rosenbrock functions, minimised without data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gnewton.models import demands
from gnewton.models.recipe import MODELS, ModelRecipe
from gnewton.options import option

if TYPE_CHECKING:
    from torch import nn

    from gnewton.tasks import Task


@MODELS.register("rosenbrock")
@dataclass(kw_only=True)
class Rosenbrock(ModelRecipe):
    """f(x) = Σ_i (x_{2i−1} − a)² + b (x_{2i−1}² − x_{2i})², least (zero) at x_odd = a, x_even = a².

    Attributes:
        form: layout in parameters: ``evens_odds`` (two of size/2 entries) or ``pairs`` (size/2 of two).
        size: number of coordinates, even.
        a: the odd coordinates of the minimum.
        b: weight of the valley's walls.
        start: the point to start from: (odd, even) for every pair, or all ``size`` coordinates x_1, x_2 ….
    """

    form: str = option(choices=("evens_odds", "pairs"))
    size: int = option(at_least=2)
    a: float = option()
    b: float = option(at_least=0)
    start: list[float] = option()

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """An odd size, and a start of neither length."""
        if self.size % 2:
            yield "size", "must be even, coordinates come in pairs"
        if len(self.start) not in (2, self.size):
            yield "start", f"must hold 2 numbers, or size={self.size}"

    def build(self, task: Task) -> nn.Module:
        """The function at its start, its coordinates being the parameters.

        Raises:
            InputError: if the data have inputs or targets.
        """
        from gnewton.models.nets.rosenbrock import EvensOdds, Pairs
        from gnewton.tasks import Minimisation

        if not isinstance(task, Minimisation):
            raise demands.mismatch(self.name, "no data (task: minimisation)", task)
        start = self.start if len(self.start) == self.size else self.start * (self.size // 2)
        return (Pairs if self.form == "pairs" else EvensOdds)(start, self.a, self.b)
