"""The parts of an optimizer that can be chosen by name: averages of the summary, controllers,
schedules of the learning rate.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from gnewton.optim.options import (
    AVERAGINGS,
    CONTROLLERS,
    SCHEDULES,
    AveragingRecipe,
    ControllerRecipe,
    ScheduleRecipe,
)
from gnewton.options import option, option_of

if TYPE_CHECKING:
    import torch

    from gnewton.optim.averaging import Averaging
    from gnewton.optim.controllers import Controller


@AVERAGINGS.register("none")
@dataclass(kw_only=True)
class NoAveragingRecipe(AveragingRecipe):
    """No average: the summary of the current update."""

    def build(self) -> Averaging:
        """An average without memory."""
        from gnewton.optim.averaging import NoAveraging

        return NoAveraging()


@AVERAGINGS.register("exponential")
@dataclass(kw_only=True)
class ExponentialRecipe(AveragingRecipe):
    """Exponentially decaying weights that sum to one."""

    coefficient: float = option(0.8, help="weight of an update relative to the next one", at_least=0, below=1)

    def build(self) -> Averaging:
        """An empty exponential average."""
        from gnewton.optim.averaging import ExponentialAveraging

        return ExponentialAveraging(self.coefficient)


@AVERAGINGS.register("uniform")
@dataclass(kw_only=True)
class UniformRecipe(AveragingRecipe):
    """Two running means: one in use, one under construction."""

    period: int = option(
        3, help="updates between swaps; the mean in use covers between one and two periods", at_least=1
    )

    def build(self) -> Averaging:
        """Two empty means."""
        from gnewton.optim.averaging import UniformAveraging

        return UniformAveraging(self.period)


@AVERAGINGS.register("static")
@dataclass(kw_only=True)
class StaticRecipe(AveragingRecipe):
    """The mean over several batches of the same update."""

    batches: int = option(4, help="summaries per update, each on a curvature batch of its own", at_least=1)

    def per_update(self) -> int:
        """The number of batches in the mean."""
        return self.batches

    def build(self) -> Averaging:
        """An empty mean."""
        from gnewton.optim.averaging import StaticAveraging

        return StaticAveraging(self.batches)


@CONTROLLERS.register("constant")
@dataclass(kw_only=True)
class ConstantRecipe(ControllerRecipe):
    """Step size and internal damping stay at their initial values."""

    def build(self) -> Controller:
        """A controller that moves nothing."""
        from gnewton.optim.controllers import Constant

        return Constant()


@dataclass(kw_only=True)
class _QuantityRecipe(ControllerRecipe):
    """A factor on the step size or the internal damping, up to a limit."""

    quantity: str = option(
        "step_size",
        help="step_size: λ_1, the factor on all rates; internal_damping: λ_int",
        choices=("step_size", "internal_damping"),
        former={"damping": "step_size"},
    )
    factor: float = option(
        0.99, help="of the quantity at every update; below 1 it falls, above 1 it rises", above=0
    )
    limit: float | None = option(
        0.1, help="multiple of the initial value at which it stops; null: no limit", above=0
    )

    def moves(self) -> str | None:
        """The chosen quantity."""
        return self.quantity

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """The limit must lie on the side to which the quantity moves."""
        if self.factor == 1:
            yield "factor", "must not be 1: nothing would move; for that choose optimizer/controller=constant"
        if self.limit is not None and (self.limit > 1 if self.factor < 1 else self.limit < 1):
            yield "limit", f"must be {'<= 1' if self.factor < 1 else '>= 1'} with a factor of {self.factor}"


@CONTROLLERS.register("geometric")
@dataclass(kw_only=True)
class GeometricRecipe(_QuantityRecipe):
    """Multiplication by the same factor at every update."""

    def build(self) -> Controller:
        """The controller before its first update."""
        from gnewton.optim.controllers import Geometric

        return Geometric(self.quantity, self.factor, self.limit)


@CONTROLLERS.register("plateau")
@dataclass(kw_only=True)
class PlateauRecipe(_QuantityRecipe):
    """Multiplication whenever the loss on the curvature batches stops falling."""

    factor: float = option_of(
        _QuantityRecipe, "factor", 0.5, help="of the quantity; below 1 it falls, above 1 it rises"
    )
    limit: float | None = option_of(_QuantityRecipe, "limit", None)
    window: int = option(20, help="updates of the rates whose mean loss is compared", at_least=1)
    patience: int = option(2, help="windows in a row without improvement that are let pass", at_least=0)
    threshold: float = option(
        0.001, help="share of the best mean loss by which a better one must be lower", at_least=0
    )

    def build(self) -> Controller:
        """The controller before its first window."""
        from gnewton.optim.controllers import Plateau

        return Plateau(
            self.quantity,
            self.factor,
            self.limit,
            window=self.window,
            patience=self.patience,
            threshold=self.threshold,
        )


@CONTROLLERS.register("progress")
@dataclass(kw_only=True)
class ProgressRecipe(ControllerRecipe):
    """λ_1 rises while the loss on the curvature batches falls, and falls otherwise."""

    rise: float = option(1.2, help="what λ_1 is multiplied by while the loss falls", above=1)
    fall: float = option(
        0.85, help="what it is multiplied by when the loss has stopped falling", above=0, below=1
    )
    highest: float = option(
        4.0, help="λ_1 beyond which it does not rise, in units of the minimiser of a batch", above=0
    )
    lowest: float = option(0.3, help="λ_1 below which it does not fall", above=0)
    window: int = option(
        6, help="updates over which the trend of the loss is taken; later a third of all so far", at_least=4
    )

    def moves(self) -> str | None:
        """λ_1 moves."""
        return "step_size"

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """The bounds must be in order."""
        if self.lowest > self.highest:
            yield "lowest", f"must be <= optimizer.controller.highest={self.highest}"

    def build(self) -> Controller:
        """The controller before its first update."""
        from gnewton.optim.controllers import Progress

        return Progress(self.rise, self.fall, highest=self.highest, lowest=self.lowest, window=self.window)


@CONTROLLERS.register("adaptive")
@dataclass(kw_only=True)
class AdaptiveRecipe(ControllerRecipe):
    """λ_int from the ratio of actual to predicted decrease on the curvature batch."""

    accept: float = option(
        0.1, help="share of the predicted decrease below which a step is rejected", at_least=0, below=1
    )
    succeed: float = option(0.75, help="share from which on it is very successful", above=0, at_most=1)
    errors: float = option(1.0, help="standard errors of the batch that count as noise in both", at_least=0)
    increase: float = option(2.0, help="factor on λ_int after a rejection", above=1)
    trials: int = option(2, help="solves with a larger λ_int at one update, at most", at_least=0)
    window: int = option(5, help="updates over which λ_int is judged", at_least=1)
    pull: float = option(
        0.05, help="share of the way back to its base, in logarithms, at every update", at_least=0, at_most=1
    )
    slices: int = option(10, help="parts of the batch from which its standard error is found", at_least=1)

    def moves(self) -> str | None:
        """λ_int moves."""
        return "internal_damping"

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """The thresholds must be in order; a standard error needs several slices."""
        if self.accept >= self.succeed:
            yield "accept", f"must be < optimizer.controller.succeed={self.succeed}"
        if self.slices == 1 and self.errors > 0:
            yield (
                "errors",
                "has no effect with optimizer.controller.slices=1; set it to 0 or take more slices",
            )

    def build(self) -> Controller:
        """The controller before its first update."""
        from gnewton.optim.controllers import Adaptive

        return Adaptive(
            accept=self.accept,
            succeed=self.succeed,
            errors=self.errors,
            increase=self.increase,
            trials=self.trials,
            window=self.window,
            pull=self.pull,
            slices=self.slices,
        )


@CONTROLLERS.register("overshoot")
@dataclass(kw_only=True)
class OvershootRecipe(ControllerRecipe):
    """λ_1 from the overshoot of the steps since the last update."""

    target: float = option(
        -0.45,
        help="c*, share of the last displacement by which it should have been longer; negative: shorter",
        at_least=-1,
        below=1,
    )
    gain: float = option(0.15, help="κ of λ_1 ← λ_1 exp(κ (c − c*)) at every update", above=0)
    momentum: float = option(
        0.9, help="of the running means of slope and curvature along the displacement", at_least=0, below=1
    )
    bound: float = option(100.0, help="λ_1 stays within this factor of its initial value", above=1)

    def moves(self) -> str | None:
        """λ_1 moves."""
        return "step_size"

    def build(self) -> Controller:
        """The controller before its first displacement."""
        from gnewton.optim.controllers import Overshoot

        return Overshoot(self.target, self.gain, self.momentum, self.bound)


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
        """torch's LambdaLR."""
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
        """1 − t."""
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
        """torch's StepLR."""
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
