"""The options of GroupedNewton."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from gnewton.optim.recipes.base import (
    OPTIMIZERS,
    AveragingRecipe,
    DirectionRecipe,
    OptimizerRecipe,
    Problem,
)
from gnewton.options import option

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(kw_only=True)
class Curvature:
    """The batches on which the summary is computed."""

    source: str = option(choices=("independent", "training"))
    batch_size: int | None = option(at_least=1)
    max_memory: float | None = option(above=0)
    engine: str = option(choices=("auto", "tangent", "reference"))

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """The training batch comes in the size it has."""
        if self.source == "training" and self.batch_size is not None:
            yield "batch_size", "has no effect with curvature.source=training; leave it null"


@OPTIMIZERS.register("grouped_newton")
@dataclass(kw_only=True)
class GroupedNewtonRecipe(OptimizerRecipe):
    """GroupedNewton: one learning rate per group from an exact summary of the loss."""

    uses_partition: ClassVar[bool] = True

    direction: DirectionRecipe
    averaging: AveragingRecipe
    curvature: Curvature
    period: int = option(at_least=1)
    warmup: int = option(at_least=0)
    damping: float = option(above=0)
    internal_damping: float = option(at_least=0)
    negative_rates: str = option(choices=("keep", "clip", "constrain"))
    rate_momentum: float = option(at_least=0, below=1)
    proximal: float = option(at_least=0)
    normalise: bool = option()

    def build(self, problem: Problem) -> torch.optim.Optimizer:
        """The optimizer of :mod:`gnewton.optim.grouped_newton` on the run's model and partition."""
        from gnewton.optim.grouped_newton import GroupedNewton

        independent = self.curvature.source == "independent"
        gigabytes = self.curvature.max_memory
        return GroupedNewton(
            problem.model,
            problem.loss_fn,
            problem.partition,
            direction=self.direction.build(problem),
            period=self.period,
            damping=self.damping,
            internal_damping=self.internal_damping,
            negative_rates=self.negative_rates,
            rate_momentum=self.rate_momentum,
            proximal=self.proximal,
            averaging=self.averaging.build(),
            normalise=self.normalise,
            warmup=self.warmup,
            curvature=problem.curvature(self.curvature.batch_size) if independent else None,
            engine=self.curvature.engine,  # type: ignore[arg-type]
            max_memory=None if gigabytes is None else int(gigabytes * 2**30),
            on_update=problem.on_update,
        )

    def step(self, optimizer: Any, closure: Callable[[], Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
        """One step; the training batch serves the summary where it is to."""
        return optimizer.step(closure, batch=batch if self.curvature.source == "training" else None)
