"""Schedules of the learning rate (for GroupedNewton: of the damping λ_1), one step per epoch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from gnewton.optim.recipes.base import SCHEDULES, ScheduleRecipe
from gnewton.options import option

if TYPE_CHECKING:
    import torch


@SCHEDULES.register("constant")
@dataclass(kw_only=True)
class Constant(ScheduleRecipe):
    """No change."""

    def build(self, optimizer: torch.optim.Optimizer, epochs: int) -> Any:
        """A factor of one at every epoch."""
        from torch.optim.lr_scheduler import LambdaLR

        return LambdaLR(optimizer, lambda epoch: 1.0)


@SCHEDULES.register("cosine")
@dataclass(kw_only=True)
class Cosine(ScheduleRecipe):
    """Half a cosine wave from the initial value to a fraction of it over the whole run."""

    follows_length: ClassVar[bool] = True

    final_fraction: float = option(at_least=0, at_most=1)

    def build(self, optimizer: torch.optim.Optimizer, epochs: int) -> Any:
        """The factor f + (1 − f)(1 + cos(π epoch / epochs)) / 2."""
        import math

        from torch.optim.lr_scheduler import LambdaLR

        f = self.final_fraction
        return LambdaLR(optimizer, lambda epoch: f + (1 - f) * (1 + math.cos(math.pi * epoch / epochs)) / 2)


@SCHEDULES.register("step")
@dataclass(kw_only=True)
class Step(ScheduleRecipe):
    """A constant factor every so many epochs."""

    every: int = option(at_least=1)
    factor: float = option(above=0, at_most=1)

    def build(self, optimizer: torch.optim.Optimizer, epochs: int) -> Any:
        """torch's StepLR."""
        from torch.optim.lr_scheduler import StepLR

        return StepLR(optimizer, step_size=self.every, gamma=self.factor)


@SCHEDULES.register("plateau")
@dataclass(kw_only=True)
class Plateau(ScheduleRecipe):
    """A constant factor whenever the training loss has stopped falling."""

    patience: int = option(at_least=0)
    threshold: float = option(at_least=0)
    factor: float = option(above=0, below=1)

    def build(self, optimizer: torch.optim.Optimizer, epochs: int) -> Any:
        """torch's ReduceLROnPlateau on the mean training loss of the epoch, relative threshold."""
        from torch.optim.lr_scheduler import ReduceLROnPlateau

        return ReduceLROnPlateau(
            optimizer,
            factor=self.factor,
            patience=self.patience,
            threshold=self.threshold,
            threshold_mode="rel",
        )

    def advance(self, scheduler: Any, train_loss: float) -> None:
        """Hand the training loss over."""
        scheduler.step(train_loss)
