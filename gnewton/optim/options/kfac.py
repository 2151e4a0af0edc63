"""Options of K-FAC, as an optimizer and as the direction of GroupedNewton."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from gnewton.errors import InputError
from gnewton.optim.hyperparameters import KFACHyperparameters, PreconditionerHyperparameters
from gnewton.optim.options import (
    DIRECTIONS,
    OPTIMIZERS,
    DirectionRecipe,
    OptimizerRecipe,
    TrainingProblem,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from gnewton.optim.shadow_direction import DirectionFactory


@dataclass(kw_only=True)
class _Options(PreconditionerHyperparameters):
    """The options that both share."""

    def arguments(self, problem: TrainingProblem, where: str) -> dict[str, Any]:
        """The arguments of :class:`gnewton.optim.kfac.KFAC`.

        Raises:
            InputError: if ``fisher`` is "true" and the loss is no negative log-likelihood; the message names
                the option under ``where``.
        """
        arguments = {
            "momentum": self.momentum,
            "weight_decay": self.weight_decay,
            "damping": self.damping,
            "kl_clip": self.kl_clip,
            "decay": self.decay,
            "statistics_period": self.statistics_period,
            "inverse_period": self.inverse_period,
            "fisher": self.fisher,
            "preconditioner": self.preconditioner,
            "start": self.start,
            "scaling": self.scaling,
            "seed": problem.seed,
        }
        if self.fisher == "true":
            if problem.likelihood is None:
                raise InputError(
                    f"{where}.fisher=true: must be empirical, the loss is no likelihood to draw labels from"
                )
            arguments["likelihood"] = problem.likelihood
        return arguments


@OPTIMIZERS.register("kfac")
@dataclass(kw_only=True)
class KFACRecipe(_Options, KFACHyperparameters, OptimizerRecipe):
    """K-FAC: natural gradient with Kronecker-factored curvature."""

    why_full_precision: ClassVar[str] = "whose factors are to be definite, which rounded products are not"
    why_uncompiled: ClassVar[str] = "which watches the single layers; compiled code has none"

    def build(self, problem: TrainingProblem) -> torch.optim.Optimizer:
        """KFAC on the run's model."""
        from gnewton.optim.kfac import KFAC

        return KFAC(problem.model, lr=self.lr, **self.arguments(problem, "optimizer"))


@DIRECTIONS.register("kfac")
@dataclass(kw_only=True)
class KFACDirection(_Options, DirectionRecipe):
    """K-FAC's step."""

    def build(self, problem: TrainingProblem) -> DirectionFactory:
        """KFAC at lr 1 on the run's model."""
        from gnewton.optim.kfac import KFAC

        arguments = self.arguments(problem, "optimizer.direction")

        def build(named: list[tuple[str, Tensor]]) -> torch.optim.Optimizer:
            return KFAC(problem.model, lr=1.0, params=named, **arguments)

        return build
