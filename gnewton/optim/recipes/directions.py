"""The first-order methods that propose the direction of GroupedNewton.

Their learning rate is 1 throughout: its scale is undone by the rates.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from gnewton.optim.recipes.base import DIRECTIONS, DirectionRecipe
from gnewton.options import option

if TYPE_CHECKING:
    from gnewton.optim.direction import DirectionFactory


@DIRECTIONS.register("sgd")
@dataclass(kw_only=True)
class SGDDirection(DirectionRecipe):
    """The gradient with momentum."""

    momentum: float = option(at_least=0, below=1)
    dampening: float = option(at_least=0, at_most=1)
    nesterov: bool = option()

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Nesterov's form needs plain momentum."""
        if self.nesterov and (self.momentum == 0 or self.dampening > 0):
            yield "nesterov", "needs direction.momentum > 0 and direction.dampening=0"

    def build(self) -> DirectionFactory:
        """torch.optim.SGD at lr 1."""
        import torch

        return partial(
            torch.optim.SGD, lr=1.0, momentum=self.momentum, dampening=self.dampening, nesterov=self.nesterov
        )


@DIRECTIONS.register("adam")
@dataclass(kw_only=True)
class AdamDirection(DirectionRecipe):
    """Adam's step."""

    betas: list[float] = option(at_least=0, below=1, length=2)
    eps: float = option(above=0)

    def build(self) -> DirectionFactory:
        """torch.optim.Adam at lr 1."""
        import torch

        first, second = self.betas
        return partial(torch.optim.Adam, lr=1.0, betas=(first, second), eps=self.eps)
