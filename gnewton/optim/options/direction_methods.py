"""The first-order methods that can propose the direction of GroupedNewton.

Their learning rate is 1: the rates of GroupedNewton cancel its scale.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from gnewton.optim.options import DIRECTIONS, DirectionRecipe, TrainingProblem
from gnewton.optim.options.baselines import SGD, Adam
from gnewton.options import option, option_of

if TYPE_CHECKING:
    from gnewton.optim.shadow_direction import DirectionFactory


@DIRECTIONS.register("sgd")
@dataclass(kw_only=True)
class SGDDirection(DirectionRecipe):
    """The gradient, with momentum."""

    momentum: float = option_of(
        SGD, "momentum", help="factor on the previous direction; 0: the gradient itself"
    )
    dampening: float = option_of(SGD, "dampening")
    nesterov: bool = option_of(SGD, "nesterov")
    weight_decay: float = option(
        0.0,
        help="factor of the L2 term added to the gradient, and to the loss that the rates are found for",
        at_least=0,
    )

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Nesterov momentum needs undampened momentum."""
        if self.nesterov and (self.momentum == 0 or self.dampening > 0):
            yield "nesterov", "needs direction.momentum > 0 and direction.dampening=0"

    def build(self, problem: TrainingProblem) -> DirectionFactory:
        """A factory of ``torch.optim.SGD`` with learning rate 1."""
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
    betas: list[float] = option_of(Adam, "betas")
    eps: float = option_of(Adam, "eps")
    weight_decay: float = option_of(SGDDirection, "weight_decay")

    def arguments(self) -> dict[str, Any]:
        """The arguments that all of them share."""
        first, second = self.betas
        return {"betas": (first, second), "eps": self.eps, "weight_decay": self.weight_decay}


@DIRECTIONS.register("adam")
@dataclass(kw_only=True)
class AdamDirection(_AdamFamily):
    """Adam's step."""

    def build(self, problem: TrainingProblem) -> DirectionFactory:
        """A factory of ``torch.optim.Adam`` with learning rate 1."""
        import torch

        return partial(torch.optim.Adam, lr=1.0, **self.arguments())


@DIRECTIONS.register("adamw")
@dataclass(kw_only=True)
class AdamWDirection(_AdamFamily):
    """Adam's step with decoupled weight decay."""

    weight_decay: float = option_of(
        _AdamFamily, "weight_decay", 0.01, help="share of each parameter added to the direction"
    )

    def build(self, problem: TrainingProblem) -> DirectionFactory:
        """A factory of ``torch.optim.AdamW`` with learning rate 1."""
        import torch

        return partial(torch.optim.AdamW, lr=1.0, **self.arguments())


@DIRECTIONS.register("nadam")
@dataclass(kw_only=True)
class NAdamDirection(_AdamFamily):
    """Adam's step with Nesterov momentum."""

    momentum_decay: float = option(0.004, help="how fast the momentum grows to its value", at_least=0)
    weight_decay: float = option_of(
        _AdamFamily, "weight_decay", help="factor of the L2 term, or the share of each parameter if decoupled"
    )
    decoupled: bool = option(False, help="weight decay added to the direction instead of to the gradient")

    def build(self, problem: TrainingProblem) -> DirectionFactory:
        """A factory of ``torch.optim.NAdam`` with learning rate 1."""
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

    alpha: float = option(0.99, help="decay of the average of the square", at_least=0, below=1)
    eps: float = option_of(_AdamFamily, "eps")
    momentum: float = option_of(SGDDirection, "momentum", 0.0)
    centered: bool = option(
        False, help="subtract the square of the average gradient: an estimate of the variance"
    )
    weight_decay: float = option_of(SGDDirection, "weight_decay")

    def build(self, problem: TrainingProblem) -> DirectionFactory:
        """A factory of ``torch.optim.RMSprop`` with learning rate 1."""
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

    momentum: float = option_of(
        SGDDirection, "momentum", 0.95, help="of Muon, before the matrix is made orthogonal"
    )
    nesterov: bool = option_of(SGDDirection, "nesterov", True, help="Nesterov's form of it")
    betas: list[float] = option_of(
        _AdamFamily, "betas", help="of AdamW: decay of the averages of the gradient and of its square"
    )
    eps: float = option_of(_AdamFamily, "eps", help="of AdamW: added to the denominator")
    weight_decay: float = option_of(AdamWDirection, "weight_decay", 0.0)

    def build(self, problem: TrainingProblem) -> DirectionFactory:
        """torch.optim.Muon and torch.optim.AdamW at lr 1, with steps on one scale."""
        from gnewton.optim.directions import muon_with_adamw

        return partial(muon_with_adamw, momentum=self.momentum, nesterov=self.nesterov, **self.arguments())


@DIRECTIONS.register("pair")
@dataclass(kw_only=True)
class PairDirection(DirectionRecipe):
    """Two first-order methods; each group has a rate for each of them, or one of the second alone."""

    single: ClassVar[bool] = False

    first: DirectionRecipe = option(help="one of the two methods")
    second: DirectionRecipe = option(help="the other one")
    shared: bool = option(True, help="one rate for the first method, common to all groups", before=False)
    weight_decay: float | None = option(
        None, help="that of both methods; null: as each has it", at_least=0, before=None
    )

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Refuse a pair within a pair, and a weight decay that a method does not have."""
        for name in ("first", "second"):
            member = getattr(self, name)
            if not member.single:
                yield f"{name}.name", "must be a single direction"
            elif self.weight_decay is not None and not hasattr(member, "weight_decay"):
                yield "weight_decay", f"must be null, direction.{name}={member.name} has no weight decay"

    def build(self, problem: TrainingProblem) -> Mapping[str, DirectionFactory]:
        """Both methods, labelled by their names, or ``first`` and ``second`` if these are equal."""
        from gnewton.optim.directions import Shared

        names = (self.first.name, self.second.name)
        labels = names if names[0] != names[1] else ("first", "second")
        built: dict[str, DirectionFactory] = {}
        for label, recipe in zip(labels, (self.first, self.second), strict=True):
            if self.weight_decay is not None:
                recipe = replace(recipe, weight_decay=self.weight_decay)  # type: ignore[call-arg]
            factory = recipe.build(problem)
            assert callable(factory)
            built[label] = Shared(factory) if self.shared and not built else factory
        return built
