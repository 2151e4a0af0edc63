"""The first-order methods that can propose the direction of GroupedNewton.

Their learning rate is 1: the rates of GroupedNewton cancel its scale.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from gnewton.optim.options import DIRECTIONS, DirectionRecipe, TrainingProblem
from gnewton.options import option

if TYPE_CHECKING:
    from gnewton.optim.shadow_direction import DirectionFactory


@DIRECTIONS.register("sgd")
@dataclass(kw_only=True)
class SGDDirection(DirectionRecipe):
    """The gradient, with momentum."""

    momentum: float = option(at_least=0, below=1)
    dampening: float = option(at_least=0, at_most=1)
    nesterov: bool = option()
    weight_decay: float = option(at_least=0)

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Nesterov momentum needs undampened momentum."""
        if self.nesterov and (self.momentum == 0 or self.dampening > 0):
            yield "nesterov", "needs direction.momentum > 0 and direction.dampening=0"

    def build(self, problem: TrainingProblem) -> DirectionFactory:
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
class _AdamFamily(DirectionRecipe):
    betas: list[float] = option(at_least=0, below=1, length=2)
    eps: float = option(above=0)
    weight_decay: float = option(at_least=0)

    def arguments(self) -> dict[str, Any]:
        """The arguments that all of them share."""
        first, second = self.betas
        return {"betas": (first, second), "eps": self.eps, "weight_decay": self.weight_decay}


@DIRECTIONS.register("adam")
@dataclass(kw_only=True)
class AdamDirection(_AdamFamily):
    """Adam's step."""

    def build(self, problem: TrainingProblem) -> DirectionFactory:
        """torch.optim.Adam at lr 1."""
        import torch

        return partial(torch.optim.Adam, lr=1.0, **self.arguments())


@DIRECTIONS.register("adamw")
@dataclass(kw_only=True)
class AdamWDirection(_AdamFamily):
    """Adam's step with decoupled weight decay."""

    def build(self, problem: TrainingProblem) -> DirectionFactory:
        """torch.optim.AdamW at lr 1."""
        import torch

        return partial(torch.optim.AdamW, lr=1.0, **self.arguments())


@DIRECTIONS.register("nadam")
@dataclass(kw_only=True)
class NAdamDirection(_AdamFamily):
    """Adam's step with Nesterov momentum."""

    momentum_decay: float = option(at_least=0)
    decoupled: bool = option()

    def build(self, problem: TrainingProblem) -> DirectionFactory:
        """torch.optim.NAdam at lr 1."""
        import torch

        return partial(
            torch.optim.NAdam,
            lr=1.0,
            **self.arguments(),
            momentum_decay=self.momentum_decay,
            decoupled_weight_decay=self.decoupled,
        )


@DIRECTIONS.register("rmsprop")
@dataclass(kw_only=True)
class RMSpropDirection(DirectionRecipe):
    """The gradient over the root of its mean square."""

    alpha: float = option(at_least=0, below=1)
    eps: float = option(above=0)
    momentum: float = option(at_least=0, below=1)
    centered: bool = option()
    weight_decay: float = option(at_least=0)

    def build(self, problem: TrainingProblem) -> DirectionFactory:
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
class MuonDirection(_AdamFamily):
    """Muon on the matrices, AdamW on every other tensor; ``betas`` and ``eps`` belong to AdamW."""

    momentum: float = option(at_least=0, below=1)
    nesterov: bool = option()

    def build(self, problem: TrainingProblem) -> DirectionFactory:
        """torch.optim.Muon and torch.optim.AdamW at lr 1, with steps on one scale."""
        from gnewton.optim.directions import muon_with_adamw

        return partial(muon_with_adamw, momentum=self.momentum, nesterov=self.nesterov, **self.arguments())


@DIRECTIONS.register("pair")
@dataclass(kw_only=True)
class PairDirection(DirectionRecipe):
    """Two first-order methods; each group has one rate for each of them."""

    single: ClassVar[bool] = False

    first: DirectionRecipe
    second: DirectionRecipe

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Pairs cannot be nested."""
        for name in ("first", "second"):
            if not getattr(self, name).single:
                yield f"{name}.name", "must be a single direction"

    def build(self, problem: TrainingProblem) -> Mapping[str, DirectionFactory]:
        """Both methods, labelled ``first`` and ``second``."""
        built = {}
        for name, recipe in (("first", self.first), ("second", self.second)):
            factory = recipe.build(problem)
            assert callable(factory)
            built[name] = factory
        return built
