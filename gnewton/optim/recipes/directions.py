"""The first-order methods that propose the direction of GroupedNewton.

Their learning rate is 1 throughout: its scale is undone by the rates.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from gnewton.optim.recipes.base import DIRECTIONS, DirectionRecipe, Problem
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
    weight_decay: float = option(at_least=0)

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Nesterov's form needs plain momentum."""
        if self.nesterov and (self.momentum == 0 or self.dampening > 0):
            yield "nesterov", "needs direction.momentum > 0 and direction.dampening=0"

    def build(self, problem: Problem) -> DirectionFactory:
        """torch.optim.SGD at lr 1."""
        import torch

        return partial(
            torch.optim.SGD,
            lr=1.0,
            momentum=self.momentum,
            dampening=self.dampening,
            nesterov=self.nesterov,
            weight_decay=self.weight_decay,
        )


@dataclass(kw_only=True)
class _AdamOptions(DirectionRecipe):
    betas: list[float] = option(at_least=0, below=1, length=2)
    eps: float = option(above=0)
    weight_decay: float = option(at_least=0)


@DIRECTIONS.register("adam")
@dataclass(kw_only=True)
class AdamDirection(_AdamOptions):
    """Adam's step."""

    def build(self, problem: Problem) -> DirectionFactory:
        """torch.optim.Adam at lr 1."""
        import torch

        first, second = self.betas
        return partial(
            torch.optim.Adam, lr=1.0, betas=(first, second), eps=self.eps, weight_decay=self.weight_decay
        )


@DIRECTIONS.register("adamw")
@dataclass(kw_only=True)
class AdamWDirection(_AdamOptions):
    """Adam's step and a share of the parameters."""

    def build(self, problem: Problem) -> DirectionFactory:
        """torch.optim.AdamW at lr 1."""
        import torch

        first, second = self.betas
        return partial(
            torch.optim.AdamW, lr=1.0, betas=(first, second), eps=self.eps, weight_decay=self.weight_decay
        )


@DIRECTIONS.register("nadam")
@dataclass(kw_only=True)
class NAdamDirection(_AdamOptions):
    """Adam's step with Nesterov momentum."""

    momentum_decay: float = option(at_least=0)
    decoupled: bool = option()

    def build(self, problem: Problem) -> DirectionFactory:
        """torch.optim.NAdam at lr 1."""
        import torch

        first, second = self.betas
        return partial(
            torch.optim.NAdam,
            lr=1.0,
            betas=(first, second),
            eps=self.eps,
            weight_decay=self.weight_decay,
            momentum_decay=self.momentum_decay,
            decoupled_weight_decay=self.decoupled,
        )


@DIRECTIONS.register("rmsprop")
@dataclass(kw_only=True)
class RMSpropDirection(DirectionRecipe):
    """The gradient over the root of the average of its square."""

    alpha: float = option(at_least=0, below=1)
    eps: float = option(above=0)
    momentum: float = option(at_least=0, below=1)
    centered: bool = option()
    weight_decay: float = option(at_least=0)

    def build(self, problem: Problem) -> DirectionFactory:
        """torch.optim.RMSprop at lr 1."""
        import torch

        return partial(
            torch.optim.RMSprop,
            lr=1.0,
            alpha=self.alpha,
            eps=self.eps,
            momentum=self.momentum,
            centered=self.centered,
            weight_decay=self.weight_decay,
        )


@DIRECTIONS.register("muon")
@dataclass(kw_only=True)
class MuonDirection(_AdamOptions):
    """Muon on the matrices, AdamW on every other tensor; the options of Adam are those of the latter."""

    momentum: float = option(at_least=0, below=1)
    nesterov: bool = option()

    def build(self, problem: Problem) -> DirectionFactory:
        """torch.optim.Muon and torch.optim.AdamW at lr 1, their steps on one scale."""
        from gnewton.optim.composite import muon_with_adamw

        first, second = self.betas
        return partial(
            muon_with_adamw,
            momentum=self.momentum,
            nesterov=self.nesterov,
            weight_decay=self.weight_decay,
            betas=(first, second),
            eps=self.eps,
        )
