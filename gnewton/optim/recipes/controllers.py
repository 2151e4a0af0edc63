"""What moves the dampings of GroupedNewton from update to update."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gnewton.optim.recipes.base import CONTROLLERS, ControllerRecipe
from gnewton.options import option

if TYPE_CHECKING:
    from gnewton.optim.damping import Controller

_QUANTITIES = ("damping", "internal_damping")


@CONTROLLERS.register("constant")
@dataclass(kw_only=True)
class ConstantRecipe(ControllerRecipe):
    """No change."""

    def build(self) -> Controller:
        """Factors of one."""
        from gnewton.optim.damping import Constant

        return Constant()


@dataclass(kw_only=True)
class _Moving(ControllerRecipe):
    """A factor on one of the dampings, within a limit."""

    quantity: str = option(choices=_QUANTITIES)
    factor: float = option(above=0)
    limit: float | None = option(above=0)

    def moves(self) -> str | None:
        """The quantity."""
        return self.quantity

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """The limit lies on the side to which the quantity moves."""
        if self.factor == 1:
            yield "factor", "must not be 1: nothing would move; for that choose optimizer/controller=constant"
        if self.limit is not None and (self.limit > 1 if self.factor < 1 else self.limit < 1):
            yield "limit", f"must be {'<= 1' if self.factor < 1 else '>= 1'} with a factor of {self.factor}"


@CONTROLLERS.register("geometric")
@dataclass(kw_only=True)
class GeometricRecipe(_Moving):
    """The same factor at every update."""

    def build(self) -> Controller:
        """The schedule at its start."""
        from gnewton.optim.damping import Geometric

        return Geometric(self.quantity, self.factor, self.limit)


@CONTROLLERS.register("plateau")
@dataclass(kw_only=True)
class PlateauRecipe(_Moving):
    """A factor whenever the loss on the curvature batches has stopped falling."""

    window: int = option(at_least=1)
    patience: int = option(at_least=0)
    threshold: float = option(at_least=0)

    def build(self) -> Controller:
        """The rule before its first window."""
        from gnewton.optim.damping import Plateau

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
    """λ_1 by whether the loss on the curvature batches falls."""

    rise: float = option(above=1)
    fall: float = option(above=0, below=1)
    highest: float = option(above=0)
    lowest: float = option(above=0)
    window: int = option(at_least=4)

    def moves(self) -> str | None:
        """λ_1."""
        return "damping"

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """The lowest is not above the highest."""
        if self.lowest > self.highest:
            yield "lowest", f"must be <= optimizer.controller.highest={self.highest}"

    def build(self) -> Controller:
        """The rule before its first update."""
        from gnewton.optim.damping import Progress

        return Progress(self.rise, self.fall, highest=self.highest, lowest=self.lowest, window=self.window)


@CONTROLLERS.register("adaptive")
@dataclass(kw_only=True)
class AdaptiveRecipe(ControllerRecipe):
    """λ_int by comparing the decrease on the curvature batch with the predicted one."""

    accept: float = option(at_least=0, below=1)
    succeed: float = option(above=0, at_most=1)
    errors: float = option(at_least=0)
    increase: float = option(above=1)
    trials: int = option(at_least=0)
    window: int = option(at_least=1)
    pull: float = option(at_least=0, at_most=1)
    slices: int = option(at_least=1)

    def moves(self) -> str | None:
        """λ_int."""
        return "internal_damping"

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Success takes more than acceptance, and noise is known from several slices only."""
        if self.accept >= self.succeed:
            yield "accept", f"must be < optimizer.controller.succeed={self.succeed}"
        if self.slices == 1 and self.errors > 0:
            yield (
                "errors",
                "has no effect with optimizer.controller.slices=1; set it to 0 or take more slices",
            )

    def build(self) -> Controller:
        """The rule before its first update."""
        from gnewton.optim.damping import Adaptive

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
    """λ_1 by how far the steps since the last update overshot."""

    target: float = option(at_least=-1, below=1)
    gain: float = option(above=0)
    momentum: float = option(at_least=0, below=1)
    bound: float = option(above=1)

    def moves(self) -> str | None:
        """λ_1."""
        return "damping"

    def build(self) -> Controller:
        """The rule before its first displacement."""
        from gnewton.optim.damping import Overshoot

        return Overshoot(self.target, self.gain, self.momentum, self.bound)
