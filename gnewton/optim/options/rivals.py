"""Rivals: NAdam, RMSprop, Muon and DoG; Prodigy, D-Adaptation, schedule-free, SOAP and Shampoo of others.

``pip install 'gnewton[rivals]'`` installs the packages.
"""

from __future__ import annotations

import importlib
import importlib.util
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from gnewton.optim.options import OPTIMIZERS, OptimizerRecipe, TrainingProblem
from gnewton.optim.options.baselines import Adam, AdamW, FirstOrderRecipe
from gnewton.options import option, option_of

if TYPE_CHECKING:
    import torch

    from gnewton.optim.shadow_direction import DirectionFactory


@dataclass(kw_only=True)
class RivalRecipe(OptimizerRecipe):
    """An optimizer of another package.

    Attributes:
        package: the package it needs.
        kind: the name of its class there.
    """

    why_full_precision: ClassVar[str] = ""
    why_uncompiled: ClassVar[str] = ""
    package: ClassVar[str]
    kind: ClassVar[str]

    lr: float = option(1.0, help="factor on the estimated learning rate", above=0)
    weight_decay: float = option(
        0.0, help="share of each parameter if decoupled, else factor of the L2 term", at_least=0
    )

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """The package must be installed."""
        spec = importlib.util.find_spec(self.package)
        if spec is None or spec.origin is None:  # a plain folder of that name is no package
            yield "name", f"needs the package {self.package}: pip install 'gnewton[rivals]'"

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """The arguments beside those that all rivals have."""

    def build(self, problem: TrainingProblem) -> torch.optim.Optimizer:
        """The optimizer over all trainable parameters."""
        from gnewton.optim.grouping import trainable

        kind: Any = getattr(importlib.import_module(self.package), self.kind)
        optimizer: torch.optim.Optimizer = kind(
            list(trainable(problem.model).values()),
            lr=self.lr,
            weight_decay=self.weight_decay,
            **self.settings(),
        )
        return optimizer


@dataclass(kw_only=True)
class AdamLikeRecipe(RivalRecipe):
    """A rival with Adam's two averages."""

    betas: list[float] = option_of(Adam, "betas")
    eps: float = option_of(Adam, "eps")

    def settings(self) -> dict[str, Any]:
        """Adam's arguments."""
        first, second = self.betas
        return {"betas": (first, second), "eps": self.eps}


@OPTIMIZERS.register("prodigy")
@dataclass(kw_only=True)
class Prodigy(AdamLikeRecipe):
    """Adam with a scale that is estimated from the distance to the start (Mishchenko, Defazio 2023)."""

    package: ClassVar[str] = "prodigyopt"
    kind: ClassVar[str] = "Prodigy"

    decoupled: bool = option(
        True, help="weight decay taken from the parameter instead of added to the gradient"
    )
    bias_correction: bool = option(False, help="correct the averages for their start at 0")
    safeguard_warmup: bool = option(
        False, help="leave the learning rate out of the estimate, for a schedule with a warm-up"
    )

    def settings(self) -> dict[str, Any]:
        """The arguments that only Prodigy has."""
        return {
            **super().settings(),
            "decouple": self.decoupled,
            "use_bias_correction": self.bias_correction,
            "safeguard_warmup": self.safeguard_warmup,
        }


@OPTIMIZERS.register("dadapt_adam")
@dataclass(kw_only=True)
class DAdaptAdam(AdamLikeRecipe):
    """D-Adaptation for Adam (Defazio, Mishchenko 2023)."""

    package: ClassVar[str] = "dadaptation"
    kind: ClassVar[str] = "DAdaptAdam"

    decoupled: bool = option_of(Prodigy, "decoupled", False)
    bias_correction: bool = option_of(Prodigy, "bias_correction")

    def settings(self) -> dict[str, Any]:
        """The arguments that only D-Adaptation has."""
        own = {"decouple": self.decoupled, "use_bias_correction": self.bias_correction}
        return super().settings() | own


@OPTIMIZERS.register("schedule_free")
@dataclass(kw_only=True)
class ScheduleFree(AdamLikeRecipe):
    """AdamW without a schedule: gradients at y, evaluation at the average x (Defazio et al. 2024)."""

    package: ClassVar[str] = "schedulefree"
    kind: ClassVar[str] = "AdamWScheduleFree"

    evaluates_elsewhere: ClassVar[bool] = True

    lr: float = option_of(RivalRecipe, "lr", 0.0025, help="learning rate")
    betas: list[float] = option_of(
        AdamLikeRecipe,
        "betas",
        help="weight of the average in the point of the gradients; decay of the average of their square",
    )
    weight_decay: float = option_of(
        RivalRecipe,
        "weight_decay",
        help="share of each parameter taken away per step, times the learning rate",
    )
    warmup: int = option(0, help="steps over which the learning rate rises", at_least=0)

    def build(self, problem: TrainingProblem) -> torch.optim.Optimizer:
        """The optimizer, at the points of its gradients."""
        optimizer: Any = super().build(problem)
        optimizer.train()
        return optimizer  # type: ignore[no-any-return]

    def settings(self) -> dict[str, Any]:
        """The length of the rise."""
        return super().settings() | {"warmup_steps": self.warmup}

    def evaluating(self, optimizer: torch.optim.Optimizer) -> AbstractContextManager[None]:
        """Within the block the parameters are the average x."""
        return _at_average(optimizer)


@OPTIMIZERS.register("soap")
@dataclass(kw_only=True)
class Soap(AdamLikeRecipe):
    """Adam in the eigenbasis of Shampoo's preconditioner (Vyas et al. 2024); its first step moves nothing."""

    package: ClassVar[str] = "pytorch_optimizer"
    kind: ClassVar[str] = "SOAP"

    lr: float = option_of(RivalRecipe, "lr", 0.003, help="learning rate")
    betas: list[float] = option_of(
        AdamLikeRecipe,
        "betas",
        [0.95, 0.95],
        help="decays of the averages; the second also of the preconditioner",
    )
    weight_decay: float = option_of(
        RivalRecipe,
        "weight_decay",
        0.01,
        help="share of each parameter taken away per step, times the learning rate",
    )
    period: int = option(10, help="steps between two updates of the eigenbasis", at_least=1)
    max_size: int = option(10_000, help="longest side of a tensor that gets a preconditioner", at_least=1)
    vectors: bool = option(False, help="precondition tensors of one dimension, such as biases, too")

    def settings(self) -> dict[str, Any]:
        """The arguments that only SOAP has."""
        return {
            **super().settings(),
            "precondition_frequency": self.period,
            "max_precondition_dim": self.max_size,
            "precondition_1d": self.vectors,
        }


@OPTIMIZERS.register("shampoo")
@dataclass(kw_only=True)
class Shampoo(RivalRecipe):
    """The gradient between inverse roots of its second moments, one for each of its axes (Gupta et al. 2018).

    For a matrix G: L = εI + Σ G Gᵀ and R = εI + Σ Gᵀ G over all steps, and −lr · L^(−1/4) G R^(−1/4) is the
    step. The momentum of the package mixes steps with gradients, and is left out.
    """

    package: ClassVar[str] = "pytorch_optimizer"
    kind: ClassVar[str] = "Shampoo"

    lr: float = option_of(RivalRecipe, "lr", 0.1, help="learning rate")
    eps: float = option(1e-6, help="ε, where the sums begin", above=0)
    period: int = option(
        1, help="steps between two computations of the roots; none moves before the first", at_least=1
    )
    decoupled: bool = option_of(Prodigy, "decoupled", False)

    def settings(self) -> dict[str, Any]:
        """Shampoo's own options."""
        return {
            "matrix_eps": self.eps,
            "preconditioning_compute_steps": self.period,
            "weight_decouple": self.decoupled,
        }


@contextmanager
def _at_average(optimizer: Any) -> Iterator[None]:
    """Within the block the parameters of a schedule-free optimizer are its average x.

    Its own ``train()`` returns to y up to rounding, so that a run would depend on when it was evaluated: the
    parameters are put back as they were, bit for bit.

    Args:
        optimizer: of the package schedulefree.
    """
    from gnewton.optim.bound_optimizer import put_back

    with put_back(p for group in optimizer.param_groups for p in group["params"]):
        optimizer.eval()
        try:
            yield
        finally:
            optimizer.train()


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
        """``torch.optim.NAdam`` with these options."""
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
        """``torch.optim.RMSprop`` with these options."""
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
        """Refuse Nesterov's form without momentum."""
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


@OPTIMIZERS.register("dog")
@dataclass(kw_only=True)
class DoGRecipe(OptimizerRecipe):
    """Gradient descent without a rate to tune (Ivgi, Hinder, Carmon 2023), evaluated at an average."""

    why_full_precision: ClassVar[str] = ""
    why_uncompiled: ClassVar[str] = ""
    evaluates_elsewhere: ClassVar[bool] = True

    lr: float = option(1.0, help="factor on the step size of the method", above=0)
    initial: float = option(
        1e-6,
        help="first step as a share of 1 + the norm of the weights; with batch normalisation 1e-4",
        above=0,
    )
    eps: float = option(1e-8, help="added to the sum of the squared gradients", above=0)
    weight_decay: float = option(0.0, help="factor of the L2 term added to the gradient", at_least=0)

    def build(self, problem: TrainingProblem) -> torch.optim.Optimizer:
        """:class:`gnewton.optim.dog.DoG` over all trainable parameters."""
        from gnewton.optim.dog import DoG
        from gnewton.optim.grouping import trainable

        return DoG(
            trainable(problem.model).values(),
            lr=self.lr,
            initial=self.initial,
            eps=self.eps,
            weight_decay=self.weight_decay,
        )

    def evaluating(self, optimizer: torch.optim.Optimizer) -> AbstractContextManager[None]:
        """Within the block the parameters are the average of the iterates."""
        from gnewton.optim.dog import DoG

        assert isinstance(optimizer, DoG)
        return optimizer.averaged()
