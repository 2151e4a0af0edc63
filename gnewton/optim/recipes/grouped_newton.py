"""The options of GroupedNewton."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from gnewton.optim.recipes.base import (
    OPTIMIZERS,
    AveragingRecipe,
    ControllerRecipe,
    DirectionRecipe,
    Problem,
)
from gnewton.optim.recipes.measuring import Curvature, MeasuringRecipe
from gnewton.options import option

if TYPE_CHECKING:
    import torch

    from gnewton.optim.direction import DirectionFactory


@OPTIMIZERS.register("grouped_newton")
@dataclass(kw_only=True)
class GroupedNewtonRecipe(MeasuringRecipe):
    """GroupedNewton: one learning rate per group from an exact summary of the loss."""

    direction: DirectionRecipe
    averaging: AveragingRecipe
    controller: ControllerRecipe
    curvature: Curvature
    along: str = option(choices=("fresh", "step"))
    period: int = option(at_least=1)
    warmup: int = option(at_least=0)
    damping: float = option(above=0)
    solver: str = option(choices=("cubic", "cubic_diagonal", "ridge", "newton"))
    internal_damping: float = option(at_least=0)
    negative_rates: str = option(choices=("keep", "clip", "constrain"))
    rate_momentum: float = option(at_least=0, below=1)
    rate_median: int | None = option(at_least=2)
    cap: float | None = option(above=0)
    safeguard: bool = option()
    shrinkage: float = option(at_least=0)
    proximal: float = option(at_least=0)
    normalise: bool = option()

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Combinations that cannot be."""
        if self.solver == "newton" and self.negative_rates == "constrain":
            yield "negative_rates", "optimizer.solver=newton has no such form; must be one of keep, clip"
        yield from super().conflicts()
        if self.controller.moves() == "internal_damping" and self.solver == "newton":
            yield "solver", f"optimizer.controller={self.controller.name} moves λ_int, which it has not"
        elif self.controller.moves() == "internal_damping" and self.internal_damping == 0:
            yield "internal_damping", f"must be > 0, optimizer.controller={self.controller.name} moves it"

    def build(self, problem: Problem) -> torch.optim.Optimizer:
        """The optimizer of :mod:`gnewton.optim.grouped_newton` on the run's model and partition."""
        from gnewton.optim.grouped_newton import GroupedNewton

        return GroupedNewton(
            problem.model,
            problem.loss_fn,
            problem.partition,
            direction=self.direction.build(problem),
            along=self.along,
            period=self.period,
            damping=self.damping,
            solver=self.solver,
            internal_damping=self.internal_damping,
            negative_rates=self.negative_rates,
            rate_momentum=self.rate_momentum,
            rate_median=self.rate_median,
            cap=self.cap,
            safeguard=self.safeguard,
            controller=self.controller.build(),
            shrinkage=self.shrinkage,
            proximal=self.proximal,
            averaging=self.averaging.build(),
            normalise=self.normalise,
            warmup=self.warmup,
            on_update=problem.on_update,
            **self.curvature.arguments(problem),
        )

    def proposal(self, problem: Problem) -> DirectionFactory | None:
        """The direction of the options, where there is a single one."""
        built = self.direction.build(problem)
        return built if callable(built) else None

    def proposal_state(self, state: dict[str, Any]) -> dict[str, Any]:
        """The state of the direction, its parameters in the order of the partition."""
        found: dict[str, Any] = state["grouped_newton"]["directions"]["members"][0]
        return found


@OPTIMIZERS.register("grouped_newton_full_batch")
@dataclass(kw_only=True)
class FullBatchRecipe(GroupedNewtonRecipe):
    """GroupedNewton whose direction is made of the gradient of the whole training set."""

    full_batch: ClassVar[bool] = True
