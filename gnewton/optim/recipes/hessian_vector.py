"""The options of the stochastic Hessian-vector optimizer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gnewton.optim.recipes.base import OPTIMIZERS, OptimizerRecipe, Problem
from gnewton.optim.recipes.curvature import CurvatureSource
from gnewton.options import option

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@OPTIMIZERS.register("hessian_vector")
@dataclass(kw_only=True)
class HessianVectorRecipe(OptimizerRecipe):
    """Newton's direction, learned by gradient descent with one Hessian-vector product per step."""

    lr: float = option(above=0)
    lr_direction: float = option(above=0)
    ridge: float = option(at_least=0)
    curvature: CurvatureSource

    def build(self, problem: Problem) -> torch.optim.Optimizer:
        """The optimizer of :mod:`gnewton.optim.hessian_vector` on the run's model."""
        from gnewton.optim.hessian_vector import HessianVector

        return HessianVector(
            problem.model,
            problem.loss_fn,
            lr=self.lr,
            lr_direction=self.lr_direction,
            ridge=self.ridge,
            curvature=self.curvature.batches(problem),
        )

    def step(self, optimizer: Any, closure: Callable[[], Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
        """One step; the training batch serves the product where it is to."""
        return optimizer.step(closure, batch=self.curvature.training_batch(batch))
