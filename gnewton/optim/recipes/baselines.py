"""The first-order baselines and L-BFGS, straight from torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from gnewton.optim.recipes.base import OPTIMIZERS, OptimizerRecipe, Problem
from gnewton.options import option

if TYPE_CHECKING:
    import torch


@OPTIMIZERS.register("sgd")
@dataclass(kw_only=True)
class SGD(OptimizerRecipe):
    """Stochastic gradient descent, with classical or Nesterov momentum."""

    lr: float = option(above=0)
    momentum: float = option(at_least=0, below=1)
    dampening: float = option(at_least=0, at_most=1)
    nesterov: bool = option()
    weight_decay: float = option(at_least=0)

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Momentum options without momentum would do nothing."""
        if self.nesterov and (self.momentum == 0 or self.dampening > 0):
            yield "nesterov", "needs optimizer.momentum > 0 and optimizer.dampening=0"
        if self.dampening > 0 and self.momentum == 0:
            yield "dampening", "has no effect without optimizer.momentum > 0"

    def build(self, problem: Problem) -> torch.optim.Optimizer:
        """torch.optim.SGD over all trainable parameters."""
        import torch

        return torch.optim.SGD(
            trainable(problem),
            lr=self.lr,
            momentum=self.momentum,
            dampening=self.dampening,
            nesterov=self.nesterov,
            weight_decay=self.weight_decay,
        )


@dataclass(kw_only=True)
class _AdamOptions(OptimizerRecipe):
    lr: float = option(above=0)
    betas: list[float] = option(at_least=0, below=1, length=2)
    eps: float = option(above=0)
    weight_decay: float = option(at_least=0)


@OPTIMIZERS.register("adam")
@dataclass(kw_only=True)
class Adam(_AdamOptions):
    """Adam; its weight decay is the L2 term of the loss."""

    def build(self, problem: Problem) -> torch.optim.Optimizer:
        """torch.optim.Adam over all trainable parameters."""
        import torch

        first, second = self.betas
        return torch.optim.Adam(
            trainable(problem),
            lr=self.lr,
            betas=(first, second),
            eps=self.eps,
            weight_decay=self.weight_decay,
        )


@OPTIMIZERS.register("adamw")
@dataclass(kw_only=True)
class AdamW(_AdamOptions):
    """Adam with decoupled weight decay."""

    def build(self, problem: Problem) -> torch.optim.Optimizer:
        """torch.optim.AdamW over all trainable parameters."""
        import torch

        first, second = self.betas
        return torch.optim.AdamW(
            trainable(problem),
            lr=self.lr,
            betas=(first, second),
            eps=self.eps,
            weight_decay=self.weight_decay,
        )


@OPTIMIZERS.register("lbfgs")
@dataclass(kw_only=True)
class LBFGS(OptimizerRecipe):
    """Limited-memory BFGS on the whole training set: one step is up to ``max_iter`` of its iterations."""

    full_batch: ClassVar[bool] = True

    lr: float = option(above=0)
    max_iter: int = option(at_least=1)
    history_size: int = option(at_least=1)
    line_search: bool = option()

    def build(self, problem: Problem) -> torch.optim.Optimizer:
        """torch.optim.LBFGS over all trainable parameters."""
        import torch

        return torch.optim.LBFGS(
            trainable(problem),
            lr=self.lr,
            max_iter=self.max_iter,
            history_size=self.history_size,
            line_search_fn="strong_wolfe" if self.line_search else None,
        )


def trainable(problem: Problem) -> list[torch.nn.Parameter]:
    """The parameters that take part in training."""
    return [p for p in problem.model.parameters() if p.requires_grad]
