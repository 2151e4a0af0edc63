"""Options of K-FAC, as an optimizer and as the direction of GroupedNewton."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from gnewton.errors import InputError
from gnewton.optim.options import (
    DIRECTIONS,
    OPTIMIZERS,
    DirectionRecipe,
    OptimizerRecipe,
    TrainingProblem,
)
from gnewton.options import option

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from gnewton.optim.shadow_direction import DirectionFactory


@dataclass(kw_only=True)
class _Options:
    """The options that both share."""

    momentum: float = option(0.9, help="factor on the previous step; 0: none", at_least=0, below=1)
    weight_decay: float = option(
        0.0, help="share of the parameters that a step of lr 1 would take away (decoupled)", at_least=0
    )
    damping: float = option(0.03, help="λ, added to the curvature", above=0)
    kl_clip: float | None = option(
        0.01,
        help="κ, bound on the squared length of a step in the metric of the curvature; null: none",
        above=0,
    )
    decay: float = option(0.95, help="factor on the old averages of the factors", at_least=0, below=1)
    statistics_period: int = option(10, help="T_cov, steps between two updates of the factors", at_least=1)
    inverse_period: int = option(100, help="T_inv, steps between two updates of their inverses", at_least=1)
    fisher: str = option(
        "true",
        help="true: labels drawn from the predictions; empirical: the gradients of the loss",
        choices=("true", "empirical"),
    )
    preconditioner: str = option(
        "inverse",
        help="inverse: damping split over the factors; eigen: added to products of eigenvalues; ekfac",
        choices=("inverse", "eigen", "ekfac"),
    )
    start: str = option(
        "first",
        help="the averages start from the first statistics (first) or from the identity",
        choices=("first", "identity"),
    )
    scaling: str = option(
        "standard",
        help="standard; reference: A divided and G multiplied by the squared number of positions",
        choices=("standard", "reference"),
    )

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
class KFACRecipe(_Options, OptimizerRecipe):
    """K-FAC: natural gradient with Kronecker-factored curvature."""

    why_full_precision: ClassVar[str] = "whose factors are to be definite, which rounded products are not"
    why_uncompiled: ClassVar[str] = "which watches the single layers; compiled code has none"

    lr: float = option(0.003, help="learning rate", above=0)

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
