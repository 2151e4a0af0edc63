"""Options of the optimizers that use curvature: GroupedNewton and its relatives, and K-FAC."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from gnewton.errors import InputError
from gnewton.optim.hyperparameters import (
    MATRICES,
    GroupedNewtonHyperparameters,
    KFACDirectionHyperparameters,
    KFACHyperparameters,
    PreconditionerHyperparameters,
)
from gnewton.optim.options import (
    DIRECTIONS,
    OPTIMIZERS,
    AveragingRecipe,
    ControllerRecipe,
    DirectionRecipe,
    OptimizerRecipe,
    TrainingProblem,
)
from gnewton.options import Role, option

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch
    from torch import Tensor

    from gnewton.optim.shadow_direction import DirectionFactory


@dataclass(kw_only=True)
class SummarySource:
    """The batches on which the summary is computed, and the engine that computes it."""

    source: str = option(
        "training",
        help="independent: batches in an order of their own; training: the training batch in hand",
        choices=("independent", "training"),
    )
    batch_size: int | None = option(
        None,
        help="samples at a time; null: the whole training set (source=training: leave it null)",
        at_least=1,
        role=Role.SAMPLES,
    )
    max_memory: float | None = option(
        None,
        help="GiB that the summary may take; null: 4 times that of a gradient, at most half of what is free",
        above=0,
    )
    engine: str = option(
        "auto",
        help="auto: tangent where the model can be traced, else reference; tangent; reference; "
        "compiled: tangent in compiled code, which takes seconds to minutes at the start",
        choices=("auto", "tangent", "compiled", "reference"),
    )
    matrix: str = option(
        "hessian",
        help="of the model of the loss: hessian; gauss_newton: without the curvature of the outputs, never "
        "indefinite; fisher: its estimate from one drawn label a sample",
        choices=MATRICES,
        before="hessian",
    )

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """The training batch has its own size; only summaries of the Hessian are compiled."""
        if self.source == "training" and self.batch_size is not None:
            yield "batch_size", "has no effect with curvature.source=training; leave it null"
        if self.engine == "compiled" and self.matrix != "hessian":
            yield "matrix", "has no compiled form; leave engine=auto"

    def batches(self, problem: TrainingProblem) -> Iterable[tuple[Tensor, Tensor]] | None:
        """The endless series of independent batches; None if the training batch is used."""
        return problem.curvature(self.batch_size) if self.source == "independent" else None

    def training_batch(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor] | None:
        """The ``batch`` argument of the optimizer's ``step``: the training batch if it is used, else None."""
        return batch if self.source == "training" else None

    def arguments(self, problem: TrainingProblem) -> dict[str, Any]:
        """The corresponding arguments of the optimizer."""
        return {
            "curvature": self.batches(problem),
            "engine": self.engine,
            "matrix": self.matrix,
            "max_memory": None if self.max_memory is None else int(self.max_memory * 2**30),
        }


@dataclass(kw_only=True)
class _GroupedNewtonParts(OptimizerRecipe):
    direction: DirectionRecipe = option(help="the first-order method that proposes the direction")
    averaging: AveragingRecipe = option(help="the average of the summaries over updates")
    controller: ControllerRecipe = option(help="the rule that moves λ_1")
    curvature: SummarySource = option(SummarySource, help="where and how the summary is computed")


@OPTIMIZERS.register("grouped_newton")
@dataclass(kw_only=True)
class GroupedNewtonRecipe(GroupedNewtonHyperparameters, _GroupedNewtonParts):
    """GroupedNewton: one learning rate per group from an exact summary of the loss."""

    uses_partition: ClassVar[bool] = True

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Combinations that the method does not allow."""
        if self.solver == "newton" and self.negative_rates == "constrain":
            yield "negative_rates", "optimizer.solver=newton has no such form; must be one of keep, clip"
        if self.averaging.per_update() > 1 and self.curvature.source == "training":
            yield "averaging.batches", "needs optimizer.curvature.source=independent, or 1"

    def ineffective(self) -> Iterator[tuple[str, str]]:
        """λ_int has no effect on the bare Newton solver."""
        if self.solver == "newton":
            yield "internal_damping", "optimizer.solver=newton has no such term"

    def compiled_engine(self) -> bool:
        """Whether the summary goes through ``torch.compile``."""
        return self.curvature.engine == "compiled"

    def step(self, optimizer: Any, closure: Callable[[], Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
        """Make one step; the summary is taken on the training batch if the options say so."""
        return optimizer.step(closure, batch=self.curvature.training_batch(batch))

    def build(self, problem: TrainingProblem) -> torch.optim.Optimizer:
        """Build GroupedNewton on the model and the partition of the run."""
        from gnewton.optim.grouped_newton import GroupedNewton

        return GroupedNewton(
            problem.model,
            problem.loss_fn,
            problem.partition,
            direction=self.direction.build(problem),
            along=self.along,
            period=self.period,
            step_size=self.step_size,
            solver=self.solver,
            internal_damping=self.internal_damping,
            negative_rates=self.negative_rates,
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

    def proposal(self, problem: TrainingProblem) -> DirectionFactory | None:
        """The direction; of several the last one, which in a pair has the momentum."""
        built = self.direction.build(problem)
        return built if callable(built) else list(built.values())[-1]

    def proposal_state(self, state: dict[str, Any]) -> dict[str, Any]:
        """The state of the direction; its parameters are in the order of the partition."""
        member: dict[str, Any] = state["grouped_newton"]["directions"]["members"][-1]
        return member


@OPTIMIZERS.register("grouped_newton_full_batch")
@dataclass(kw_only=True)
class FullBatchRecipe(GroupedNewtonRecipe):
    """GroupedNewton along a direction made from the gradient of the whole training set."""

    full_batch: ClassVar[bool] = True


@dataclass(kw_only=True)
class _Options(PreconditionerHyperparameters):
    """The options that K-FAC has as an optimizer and as a direction."""

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
            "early_inverses": self.early_inverses,
            "fisher": self.fisher,
            "preconditioner": self.preconditioner,
            "start": self.start,
            "scaling": self.scaling,
            "seed": problem.seed,
        }
        if self.fisher != "empirical":
            if problem.likelihood is None and self.fisher == "true":
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
        """Build K-FAC on the model of the run."""
        from gnewton.optim.kfac import KFAC

        return KFAC(problem.model, lr=self.lr, **self.arguments(problem, "optimizer"))


@DIRECTIONS.register("kfac")
@dataclass(kw_only=True)
class KFACDirection(KFACDirectionHyperparameters, _Options, DirectionRecipe):
    """K-FAC's step, and Adam's for the parameters that K-FAC does not treat."""

    def build(self, problem: TrainingProblem) -> DirectionFactory:
        """A factory of K-FAC with learning rate 1, on the layers of the run's model that it treats."""
        from gnewton.optim.kfac.direction import kfac_direction

        return kfac_direction(
            problem.model,
            largest_factor=self.largest_factor,
            adam_scale=self.adam_scale,
            **self.arguments(problem, "optimizer.direction"),
        )
