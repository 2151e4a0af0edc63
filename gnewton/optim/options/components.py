"""The parts of an optimizer that can be chosen by name: averages of the summary, controllers,
schedules of the learning rate.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from gnewton.optim.hyperparameters import (
    ExponentialHyperparameters,
    ProgressHyperparameters,
    StaticHyperparameters,
    UniformHyperparameters,
)
from gnewton.optim.options import (
    AVERAGINGS,
    CONTROLLERS,
    SCHEDULES,
    AveragingRecipe,
    ControllerRecipe,
    ScheduleRecipe,
)
from gnewton.options import option

if TYPE_CHECKING:
    import torch

    from gnewton.optim.averaging import Averaging
    from gnewton.optim.controllers import Controller


@AVERAGINGS.register("none")
@dataclass(kw_only=True)
class NoAveragingRecipe(AveragingRecipe):
    """No average: the summary of the current update."""

    def build(self) -> Averaging:
        """Build the average, which has no memory."""
        from gnewton.optim.averaging import NoAveraging

        return NoAveraging()


@AVERAGINGS.register("exponential")
@dataclass(kw_only=True)
class ExponentialRecipe(ExponentialHyperparameters, AveragingRecipe):
    """Exponentially decaying weights that sum to one."""

    def build(self) -> Averaging:
        """Build an exponential average; it is empty."""
        from gnewton.optim.averaging import ExponentialAveraging

        return ExponentialAveraging(self.coefficient)


@AVERAGINGS.register("uniform")
@dataclass(kw_only=True)
class UniformRecipe(UniformHyperparameters, AveragingRecipe):
    """Two running means: one in use, one under construction."""

    def build(self) -> Averaging:
        """Build the average; both of its means are empty."""
        from gnewton.optim.averaging import UniformAveraging

        return UniformAveraging(self.period)


@AVERAGINGS.register("static")
@dataclass(kw_only=True)
class StaticRecipe(StaticHyperparameters, AveragingRecipe):
    """The mean over several batches of the same update."""

    def per_update(self) -> int:
        """The number of batches in the mean."""
        return self.batches

    def build(self) -> Averaging:
        """Build the mean over the batches of an update; it is empty."""
        from gnewton.optim.averaging import StaticAveraging

        return StaticAveraging(self.batches)


@CONTROLLERS.register("constant")
@dataclass(kw_only=True)
class ConstantRecipe(ControllerRecipe):
    """The step size keeps its initial value."""

    def build(self) -> Controller:
        """A controller that moves nothing."""
        from gnewton.optim.controllers import Constant

        return Constant()


@CONTROLLERS.register("progress")
@dataclass(kw_only=True)
class ProgressRecipe(ProgressHyperparameters, ControllerRecipe):
    """λ_1 rises while the loss on the curvature batches falls, and falls otherwise."""

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """The bounds must be in order."""
        if self.lowest > self.highest:
            yield "lowest", f"must be <= optimizer.controller.highest={self.highest}"

    def build(self) -> Controller:
        """The controller before its first update."""
        from gnewton.optim.controllers import Progress

        return Progress(
            self.rise,
            self.fall,
            highest=self.highest,
            lowest=self.lowest,
            window=self.window,
            exponent=self.exponent,
            first_rises=self.first_rises,
        )


@SCHEDULES.register("constant")
@dataclass(kw_only=True)
class ConstantSchedule(ScheduleRecipe):
    """A constant learning rate."""

    def build(self, optimizer: torch.optim.Optimizer, steps: int) -> Any:
        """torch's LambdaLR with factor 1."""
        from torch.optim.lr_scheduler import LambdaLR

        return LambdaLR(optimizer, lambda epoch: 1.0)


@dataclass(kw_only=True)
class _DecayRecipe(ScheduleRecipe):
    """A rise over the first steps, then a decay to a fraction of the initial value at the end.

    Before step k of n, the factor is (k + 1) / (w + 1) while k < w = ``warmup``, then f + (1 − f) s(t) with f
    = ``final_fraction`` and t = (k − w) / (n − w) from 0 to 1.
    """

    follows_length: ClassVar[bool] = True
    by_step: ClassVar[bool] = True

    warmup: int = option(
        0, help="leading training steps in which the value rises from 0", at_least=0, before=0
    )
    final_fraction: float = option(
        0.0, help="value at the end of the run, as a fraction of the initial one", at_least=0, at_most=1
    )

    @abstractmethod
    def shape(self, t: float) -> float:
        """s(t), which falls from 1 to 0."""

    def factor(self, k: int, steps: int) -> float:
        """The factor before step ``k`` of ``steps``."""
        if k < self.warmup:
            return (k + 1) / (self.warmup + 1)
        t = min((k - self.warmup) / max(steps - self.warmup, 1), 1.0)
        return self.final_fraction + (1 - self.final_fraction) * self.shape(t)

    def build(self, optimizer: torch.optim.Optimizer, steps: int) -> Any:
        """Build a ``LambdaLR`` of torch."""
        from torch.optim.lr_scheduler import LambdaLR

        return LambdaLR(optimizer, lambda k: self.factor(k, steps))


@SCHEDULES.register("cosine")
@dataclass(kw_only=True)
class CosineSchedule(_DecayRecipe):
    """Half a cosine wave from the initial value to a fraction of it."""

    def shape(self, t: float) -> float:
        """(1 + cos πt) / 2."""
        return (1 + math.cos(math.pi * t)) / 2


@SCHEDULES.register("linear")
@dataclass(kw_only=True)
class LinearSchedule(_DecayRecipe):
    """A straight line from the initial value to a fraction of it."""

    def shape(self, t: float) -> float:
        """The line 1 − t."""
        return 1 - t


@SCHEDULES.register("trapezoid")
@dataclass(kw_only=True)
class TrapezoidSchedule(_DecayRecipe):
    """The initial value for a share of the run, then a straight line to a fraction of it."""

    hold: float = option(
        0.5, help="share of the run, after the warm-up, before the value falls", at_least=0, below=1
    )

    def shape(self, t: float) -> float:
        """1 up to t = ``hold``, then (1 − t) / (1 − ``hold``)."""
        return min(1.0, (1 - t) / (1 - self.hold))


@SCHEDULES.register("step")
@dataclass(kw_only=True)
class StepSchedule(ScheduleRecipe):
    """Multiplication by a constant factor every few epochs."""

    every: int = option(30, help="epochs between two reductions", at_least=1)
    factor: float = option(0.1, help="multiplies the value at each reduction", above=0, at_most=1)

    def build(self, optimizer: torch.optim.Optimizer, steps: int) -> Any:
        """Build a ``StepLR`` of torch."""
        from torch.optim.lr_scheduler import StepLR

        return StepLR(optimizer, step_size=self.every, gamma=self.factor)


@SCHEDULES.register("plateau")
@dataclass(kw_only=True)
class PlateauSchedule(ScheduleRecipe):
    """Multiplication by a constant factor whenever the training loss stops falling."""

    patience: int = option(2, help="epochs without improvement before a reduction", at_least=0)
    threshold: float = option(
        0.0001, help="relative fall of the training loss that counts as an improvement", at_least=0
    )
    factor: float = option(0.5, help="multiplies the value at each reduction", above=0, below=1)

    def build(self, optimizer: torch.optim.Optimizer, steps: int) -> Any:
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
        """Pass the training loss to the scheduler."""
        scheduler.step(train_loss)
