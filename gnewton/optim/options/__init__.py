"""The optimizers and their parts (schedules, directions, averages, controllers) that can be chosen by name.

A new optimizer is an :class:`OptimizerRecipe` in a module of this package and a YAML file under
configs/optimizer. The recipes only declare and check options: torch is imported when something is built.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from gnewton.options import Role, option
from gnewton.registry import Registry

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from gnewton.optim.averaging import Averaging
    from gnewton.optim.controllers import Controller
    from gnewton.optim.rate_rule import RateUpdate
    from gnewton.optim.shadow_direction import DirectionFactory
    from gnewton.partition import Partition


@dataclass(frozen=True)
class TrainingProblem:
    """The parts of a run that an optimizer may need when it is built.

    Attributes:
        model: the network to train.
        loss_fn: mean loss from (outputs, targets).
        partition: the groups; None if the optimizer uses no partition.
        curvature: returns an endless series of batches of the given size, independent of the training order.
        on_update: receives a record of every update of the rates.
        likelihood: "categorical" (classes along axis 1), "categorical_last" (along the last axis), "gaussian"
            or "bernoulli", the distribution whose negative log-likelihood the loss is; None if it is none.
        seed: seed of the optimizer's own random draws, the same in every process; None: torch's initial seed.
    """

    model: nn.Module
    loss_fn: Callable[[Tensor, Tensor], Tensor]
    partition: Partition | None
    curvature: Callable[[int | None], Iterable[tuple[Tensor, Tensor]]]
    on_update: Callable[[RateUpdate], None]
    likelihood: str | None = None
    seed: int | None = None


@dataclass(kw_only=True)
class ScheduleRecipe(ABC):
    """The course of ``lr`` (for GroupedNewton: of the step size λ_1) over a run.

    Attributes:
        follows_length: whether the course depends on the number of epochs, which then cannot change.
        by_step: whether it acts at every training step, not after every epoch.
    """

    follows_length: ClassVar[bool] = False
    by_step: ClassVar[bool] = False

    name: str

    @abstractmethod
    def build(self, optimizer: torch.optim.Optimizer, steps: int) -> Any:
        """The torch scheduler for a run of ``steps`` training steps."""

    def advance(self, scheduler: Any, train_loss: float) -> None:
        """Move on by one step or epoch, after an epoch with this mean training loss."""
        if scheduler.last_epoch > 0:
            scheduler.step()
            return
        with warnings.catch_warnings():  # a run resumed between its last step and this call has made no step
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
            scheduler.step()  # only its first call warns


@dataclass(kw_only=True)
class OptimizerRecipe(ABC):
    """The options of one optimizer, chosen by ``optimizer=name``.

    Attributes:
        uses_partition: whether ``partition=`` has an effect.
        full_batch: whether every step needs the whole training set.
        why_full_precision: why mixed precision is refused; empty: it is allowed.
        why_uncompiled: why torch.compile is refused for the model; empty: it is allowed.
        why_unclipped: why clipped gradients are refused; empty: they are allowed.
        evaluates_elsewhere: whether the model is evaluated at other parameters than those of training.
    """

    uses_partition: ClassVar[bool] = False
    full_batch: ClassVar[bool] = False
    why_full_precision: ClassVar[str] = "whose higher derivatives are to be those of the loss, exactly"
    why_uncompiled: ClassVar[str] = (
        "which differentiates the model more than once; compiled code allows it once"
    )

    why_unclipped: ClassVar[str] = ""
    evaluates_elsewhere: ClassVar[bool] = False

    name: str
    schedule: ScheduleRecipe = option(help="the course of lr, or of the step size", role=Role.COURSE)

    def ineffective(self) -> Iterator[tuple[str, str]]:
        """Options without effect under the other options, each with the reason."""
        yield from ()

    def compiled_engine(self) -> bool:
        """Whether compiled code computes the summaries."""
        return False

    @abstractmethod
    def build(self, problem: TrainingProblem) -> torch.optim.Optimizer:
        """The optimizer for a problem."""

    def proposal(self, problem: TrainingProblem) -> DirectionFactory | None:
        """A factory of the first-order method that proposes the direction; None: there is none."""
        return None

    def proposal_state(self, state: dict[str, Any]) -> dict[str, Any]:
        """The state of that method, taken from the optimizer's ``state_dict``."""
        return state

    def evaluating(self, optimizer: torch.optim.Optimizer) -> AbstractContextManager[None]:
        """Within the block the parameters are those at which the model is to be evaluated."""
        return nullcontext()

    def step(self, optimizer: Any, closure: Callable[[], Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
        """Make one step and return the loss; ``closure`` evaluates it on ``batch``, with gradients."""
        return optimizer.step(closure)


@dataclass(kw_only=True)
class DirectionRecipe(ABC):
    """The first-order method that proposes the direction of GroupedNewton.

    Attributes:
        single: whether this is one method, not several.
    """

    single: ClassVar[bool] = True

    name: str

    @abstractmethod
    def build(self, problem: TrainingProblem) -> DirectionFactory | Mapping[str, DirectionFactory]:
        """A function from (name, tensor) pairs, named as in the model, to a torch optimizer.

        Several methods are returned as a mapping from labels to such functions.
        """


@dataclass(kw_only=True)
class AveragingRecipe(ABC):
    """The average of the summaries over updates."""

    name: str

    def per_update(self) -> int:
        """The number of batches per update."""
        return 1

    @abstractmethod
    def build(self) -> Averaging:
        """Build the average; it is empty."""


@dataclass(kw_only=True)
class ControllerRecipe(ABC):
    """The rule that moves GroupedNewton's step size from update to update."""

    name: str

    @abstractmethod
    def build(self) -> Controller:
        """The controller in its initial state."""


OPTIMIZERS = Registry("optimizer", __name__, OptimizerRecipe)  # type: ignore[type-abstract]
SCHEDULES = Registry("optimizer/schedule", __name__, ScheduleRecipe)  # type: ignore[type-abstract]
DIRECTIONS = Registry("optimizer/direction", __name__, DirectionRecipe)  # type: ignore[type-abstract]
AVERAGINGS = Registry("optimizer/averaging", __name__, AveragingRecipe)  # type: ignore[type-abstract]
CONTROLLERS = Registry("optimizer/controller", __name__, ControllerRecipe)  # type: ignore[type-abstract]
