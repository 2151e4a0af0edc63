"""The options of OuterNewton."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gnewton.optim.recipes.base import (
    OPTIMIZERS,
    AveragingRecipe,
    DirectionRecipe,
    Problem,
)
from gnewton.optim.recipes.measuring import Curvature, MeasuringRecipe
from gnewton.options import option

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@OPTIMIZERS.register("outer_newton")
@dataclass(kw_only=True)
class OuterNewtonRecipe(MeasuringRecipe):
    """An inner optimizer, and every few steps rates on its displacement."""

    direction: DirectionRecipe
    averaging: AveragingRecipe
    curvature: Curvature
    lr: float = option(above=0)
    period: int = option(at_least=1)
    damping: float = option(above=0)
    lowest: float = option()
    highest: float = option()
    solver: str = option(choices=("cubic", "cubic_diagonal", "ridge", "newton"))
    internal_damping: float = option(at_least=0)
    proximal: float = option(at_least=0)
    normalise: bool = option()

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Combinations that cannot be."""
        if not self.direction.single:
            yield "direction.name", "must be a single direction: it is the inner optimizer"
        if self.lowest >= self.highest:
            yield "lowest", f"must be < optimizer.highest={self.highest}"
        yield from super().conflicts()

    def build(self, problem: Problem) -> torch.optim.Optimizer:
        """The optimizer of :mod:`gnewton.optim.outer_newton` on the run's model and partition."""
        from gnewton.optim.outer_newton import OuterNewton

        factory = self.direction.build(problem)
        assert callable(factory)

        def inner(named: list[tuple[str, Tensor]]) -> torch.optim.Optimizer:
            optimizer = factory(named)
            for group in optimizer.param_groups:
                group["lr"] = self.lr
            return optimizer

        return OuterNewton(
            problem.model,
            problem.loss_fn,
            problem.partition,
            inner=inner,
            period=self.period,
            damping=self.damping,
            lowest=self.lowest,
            highest=self.highest,
            solver=self.solver,
            internal_damping=self.internal_damping,
            proximal=self.proximal,
            averaging=self.averaging.build(),
            normalise=self.normalise,
            on_update=problem.on_update,
            **self.curvature.arguments(problem),
        )
