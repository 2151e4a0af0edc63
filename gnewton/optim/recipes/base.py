"""The registries of optimizers and of their parts, and what each entry must offer.

Recipes are read to list options and to check them, so torch is imported only when something is built.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from gnewton.registry import Registry

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from gnewton.optim.averaging import Averaging
    from gnewton.optim.damping import Controller
    from gnewton.optim.direction import DirectionFactory
    from gnewton.optim.records import RateUpdate
    from gnewton.partition import Partition

_PACKAGE = "gnewton.optim.recipes"


@dataclass(frozen=True)
class Problem:
    """What an optimizer may need to know of the run it serves.

    Attributes:
        model: the network to train.
        loss_fn: mean loss from (outputs, targets).
        partition: the groups; None where the chosen optimizer uses none.
        curvature: gives an endless series of batches of a size, independent of the training order.
        on_update: receives a record of every update of the rates.
        likelihood: "categorical", "gaussian" or "bernoulli": what the loss is the negative log-likelihood of;
            None where the loss is none.
        seed: of what the optimizer draws itself, the same in every process; None: torch's own.
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
    """How ``lr`` (for GroupedNewton: the damping λ_1) changes from epoch to epoch.

    Attributes:
        follows_length: whether its course depends on the length of the run, which then cannot change.
    """

    follows_length: ClassVar[bool] = False

    name: str

    @abstractmethod
    def build(self, optimizer: torch.optim.Optimizer, epochs: int) -> Any:
        """The torch scheduler; ``epochs`` is the length of the whole run."""

    def advance(self, scheduler: Any, train_loss: float) -> None:
        """Tell the scheduler that an epoch is over, with the mean training loss of that epoch."""
        with warnings.catch_warnings():  # a run resumed between its last step and this call has made no step
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
            scheduler.step()


@dataclass(kw_only=True)
class OptimizerRecipe(ABC):
    """Options of one optimizer. ``name`` is the choice ``optimizer=name``.

    Attributes:
        uses_partition: whether the choice ``partition=`` has an effect.
        full_batch: whether every step needs the whole training set.
        why_full_precision: why the model's passes must not be rounded (mixed precision); empty: they may be.
        why_uncompiled: why the model must not go through torch.compile; empty: it may.
    """

    uses_partition: ClassVar[bool] = False
    full_batch: ClassVar[bool] = False
    why_full_precision: ClassVar[str] = "whose higher derivatives are to be those of the loss, exactly"
    why_uncompiled: ClassVar[str] = (
        "which differentiates the model more than once; compiled code allows it once"
    )

    name: str
    schedule: ScheduleRecipe

    def ineffective(self) -> Iterator[tuple[str, str]]:
        """Options that the values of others leave without effect, with the reason."""
        yield from ()

    def compiled_engine(self) -> bool:
        """Whether its summaries are to be computed by compiled code."""
        return False

    @abstractmethod
    def build(self, problem: Problem) -> torch.optim.Optimizer:
        """Build the optimizer for a problem."""

    def proposal(self, problem: Problem) -> DirectionFactory | None:
        """The first-order method whose step is the direction of this optimizer; None: it has none."""
        return None

    def proposal_state(self, state: dict[str, Any]) -> dict[str, Any]:
        """The state of that method, out of the ``state_dict`` of the optimizer."""
        return state

    def step(self, optimizer: Any, closure: Callable[[], Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
        """Make one step; ``closure`` evaluates the loss on ``batch`` with gradients and returns it."""
        return optimizer.step(closure)


@dataclass(kw_only=True)
class DirectionRecipe(ABC):
    """The first-order method that proposes the direction of GroupedNewton.

    Attributes:
        single: whether it is one method, not several.
    """

    single: ClassVar[bool] = True

    name: str

    @abstractmethod
    def build(self, problem: Problem) -> DirectionFactory | Mapping[str, DirectionFactory]:
        """A function from (name, tensor) pairs to a torch optimizer; names are those of the model.

        Several methods are returned by name.
        """


@dataclass(kw_only=True)
class AveragingRecipe(ABC):
    """The average of the summary over updates."""

    name: str

    def per_update(self) -> int:
        """How many batches it takes at each update."""
        return 1

    @abstractmethod
    def build(self) -> Averaging:
        """A fresh, empty average."""


@dataclass(kw_only=True)
class ControllerRecipe(ABC):
    """What moves the dampings of GroupedNewton from update to update."""

    name: str

    def moves(self) -> str | None:
        """Which damping it moves, "damping" (λ_1) or "internal_damping" (λ_int); None: neither."""
        return None

    @abstractmethod
    def build(self) -> Controller:
        """The rule at its start."""


OPTIMIZERS = Registry("optimizer", _PACKAGE, OptimizerRecipe)  # type: ignore[type-abstract]
SCHEDULES = Registry("optimizer/schedule", _PACKAGE, ScheduleRecipe)  # type: ignore[type-abstract]
DIRECTIONS = Registry("optimizer/direction", _PACKAGE, DirectionRecipe)  # type: ignore[type-abstract]
AVERAGINGS = Registry("optimizer/averaging", _PACKAGE, AveragingRecipe)  # type: ignore[type-abstract]
CONTROLLERS = Registry("optimizer/controller", _PACKAGE, ControllerRecipe)  # type: ignore[type-abstract]
