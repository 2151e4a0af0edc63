"""Further first-order baselines: NAdam and RMSprop, with learning rates for single parameters, and Muon."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from gnewton.optim.options import OPTIMIZERS, OptimizerRecipe, TrainingProblem
from gnewton.optim.options.baselines import Adam, AdamW, FirstOrderRecipe
from gnewton.options import option, option_of

if TYPE_CHECKING:
    import torch

    from gnewton.optim.shadow_direction import DirectionFactory


@OPTIMIZERS.register("nadam")
@dataclass(kw_only=True)
class NAdam(FirstOrderRecipe):
    """Adam with Nesterov momentum."""

    betas: list[float] = option_of(Adam, "betas")
    eps: float = option_of(Adam, "eps")
    momentum_decay: float = option(0.004, help="how fast the momentum grows to its value", at_least=0)
    weight_decay: float = option(
        0.0, help="factor of the L2 term, or the share of each parameter if decoupled", at_least=0
    )
    decoupled: bool = option(
        False, help="weight decay taken from the parameter instead of added to the gradient"
    )

    def method(self) -> Callable[..., torch.optim.Optimizer]:
        """torch.optim.NAdam."""
        import torch

        first, second = self.betas
        return partial(
            torch.optim.NAdam,
            lr=self.lr,
            betas=(first, second),
            eps=self.eps,
            momentum_decay=self.momentum_decay,
            weight_decay=self.weight_decay,
            decoupled_weight_decay=self.decoupled,
        )


@OPTIMIZERS.register("rmsprop")
@dataclass(kw_only=True)
class RMSprop(FirstOrderRecipe):
    """The gradient over the root of the average of its square."""

    alpha: float = option(0.99, help="decay of the average of the square", at_least=0, below=1)
    eps: float = option_of(Adam, "eps")
    momentum: float = option(0.0, help="factor on the previous step", at_least=0, below=1)
    centered: bool = option(
        False, help="subtract the square of the average gradient: an estimate of the variance"
    )
    weight_decay: float = option(0.0, help="factor of the L2 term added to the gradient", at_least=0)

    def method(self) -> Callable[..., torch.optim.Optimizer]:
        """torch.optim.RMSprop."""
        import torch

        return partial(
            torch.optim.RMSprop,
            lr=self.lr,
            alpha=self.alpha,
            eps=self.eps,
            momentum=self.momentum,
            centered=self.centered,
            weight_decay=self.weight_decay,
        )


@OPTIMIZERS.register("muon")
@dataclass(kw_only=True)
class Muon(OptimizerRecipe):
    """Muon on the matrices, AdamW on every other tensor, with steps on one scale."""

    why_full_precision: ClassVar[str] = ""
    why_uncompiled: ClassVar[str] = ""

    lr: float = option(0.001, help="learning rate of both, whose steps are on one scale", above=0)
    momentum: float = option(0.95, help="of Muon, before the matrix is made orthogonal", at_least=0, below=1)
    nesterov: bool = option(True, help="Nesterov's form of it")
    betas: list[float] = option_of(
        AdamW, "betas", help="of AdamW: decay of the averages of the gradient and of its square"
    )
    eps: float = option_of(AdamW, "eps", help="of AdamW: added to the denominator")
    weight_decay: float = option_of(AdamW, "weight_decay", 0.0)

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Nesterov's form needs momentum."""
        if self.nesterov and self.momentum == 0:
            yield "nesterov", "needs optimizer.momentum > 0"

    def method(self) -> DirectionFactory:
        """:func:`gnewton.optim.directions.muon_with_adamw` with all options."""
        from gnewton.optim.directions import muon_with_adamw

        first, second = self.betas
        settings: dict[str, Any] = {
            "momentum": self.momentum,
            "nesterov": self.nesterov,
            "betas": (first, second),
            "eps": self.eps,
            "weight_decay": self.weight_decay,
        }
        return partial(muon_with_adamw, lr=self.lr, **settings)

    def build(self, problem: TrainingProblem) -> torch.optim.Optimizer:
        """Both over the trainable parameters of the model."""
        from gnewton.optim.grouping import trainable

        return self.method()(list(trainable(problem.model).items()))

    def proposal(self, problem: TrainingProblem) -> DirectionFactory:
        """The same with learning rate 1."""
        return partial(self.method(), lr=1.0)  # type: ignore[call-arg]
