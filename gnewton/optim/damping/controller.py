"""What every rule for the dampings offers, and what it may ask for at an update of the rates."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from torch import Tensor

from gnewton.errors import InputError
from gnewton.optim.rates import Proposal

DAMPING = "damping"
INTERNAL_DAMPING = "internal_damping"
QUANTITIES = (DAMPING, INTERNAL_DAMPING)
"""What can be moved: λ_1, the factor on all rates, and λ_int, the weight of the cubic or ridge term."""


class Site(ABC):
    """An update of the rates as a controller sees it.

    Both dampings are given as factors on what the options of the optimizer say.
    """

    @property
    @abstractmethod
    def objective(self) -> float:
        """What is minimised, on the curvature batch and before the step."""

    @abstractmethod
    def propose(self, damping: float, internal_damping: float) -> Proposal:
        """The rates solved with λ_int times one factor, for steps with λ_1 times the other."""

    @abstractmethod
    def predicted(self, proposal: Proposal, damping: float, internal_damping: float) -> float:
        """The decrease, by the step of a proposal, of the model that it was solved from."""

    @abstractmethod
    def decreases(self, proposal: Proposal, damping: float, slices: int) -> Tensor:
        """The decrease of the objective by that step on equal slices of the curvature batch.

        Returns:
            float64 on the CPU, (slices,), or fewer where the batch has fewer samples.
        """

    @abstractmethod
    def displacement(self) -> tuple[float, float] | None:
        """⟨∇f, w⟩ and wᵀ∇²f w on the curvature batch; −w is how the parameters moved since the last update.

        None where they did not move, or a number is not finite.
        """


class Controller(ABC):
    """Moves the dampings from update to update.

    Attributes:
        damping, internal_damping: the factors on λ_1 and λ_int in force.
        watches_displacement: whether :meth:`Site.displacement` is asked for.
    """

    watches_displacement: ClassVar[bool] = False

    def __init__(self) -> None:
        self.damping = 1.0
        self.internal_damping = 1.0

    @property
    def quantity(self) -> str | None:
        """Which of :data:`QUANTITIES` is moved; None: neither."""
        return None

    def begin(self, damping: float, period: int) -> None:  # noqa: B027 - most rules have no use for it
        """Learn λ_1 as the options give it, and how many steps lie between two updates."""

    @abstractmethod
    def settle(self, site: Site) -> Proposal:
        """Move the dampings and choose the rates of an update. Warm-up updates are not shown."""

    def readings(self) -> dict[str, float]:
        """What was measured at the last update, by column of rates.csv."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Everything that :meth:`load_state_dict` needs to continue exactly."""
        return {"damping": self.damping, "internal_damping": self.internal_damping}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.damping, self.internal_damping = state["damping"], state["internal_damping"]


class QuantityController(Controller):
    """A controller that multiplies one of the two dampings, whichever is asked for, down or up to a limit.

    Args:
        quantity: one of :data:`QUANTITIES`.
        factor: what it is multiplied by, > 0: below 1 it falls, above 1 it rises.
        limit: multiple of the initial value beyond which it does not go; None: no limit.

    Raises:
        InputError: for an unknown quantity, a factor that is not positive or a limit on the wrong side of 1.
    """

    def __init__(self, quantity: str, factor: float, limit: float | None) -> None:
        super().__init__()
        if quantity not in QUANTITIES:
            raise InputError(f"quantity={quantity}: must be one of {', '.join(QUANTITIES)}")
        if not 0 < factor < float("inf"):
            raise InputError(f"factor={factor}: must be a finite number > 0")
        if limit is not None and not (0 < limit <= 1 if factor < 1 else limit >= 1):
            side = "> 0 and <= 1, the quantity falls" if factor < 1 else ">= 1, the quantity rises"
            raise InputError(f"limit={limit}: must be {side}")
        self._quantity = quantity
        self._factor = factor
        self._limit = limit

    @property
    def quantity(self) -> str | None:
        """The one that was asked for."""
        return self._quantity

    def multiply(self) -> None:
        """Move the quantity once."""
        value = getattr(self, self._quantity) * self._factor
        if self._limit is not None:
            value = max(value, self._limit) if self._factor < 1 else min(value, self._limit)
        setattr(self, self._quantity, value)

    def propose(self, site: Site) -> Proposal:
        """The rates at the present dampings."""
        return site.propose(self.damping, self.internal_damping)
