"""What a controller of the dampings offers, and the simple ones: constant, geometric, on a plateau."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar

from torch import Tensor

from gnewton.errors import InputError
from gnewton.optim.rate_rule import Proposal

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


class Constant(Controller):
    """λ_1 and λ_int at the values of the options."""

    def settle(self, site: Site) -> Proposal:
        """The rates at these dampings."""
        return site.propose(1.0, 1.0)


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


class Geometric(QuantityController):
    """λ_k = λ_0 · factor^k at the k-th update after the warm-up, k = 0, 1, …, within a limit.

    Args:
        quantity, factor, limit: see :class:`~gnewton.optim.controllers.controller.QuantityController`.
    """

    def __init__(self, quantity: str, factor: float, limit: float | None = None) -> None:
        super().__init__(quantity, factor, limit)
        self._started = False

    def settle(self, site: Site) -> Proposal:
        """Multiply, except at the first update, then solve."""
        if self._started:
            self.multiply()
        self._started = True
        return self.propose(site)

    def state_dict(self) -> dict[str, Any]:
        """The factors, and whether there has been an update."""
        return {**super().state_dict(), "started": self._started}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        super().load_state_dict(state)
        self._started = bool(state["started"])


class Plateau(QuantityController):
    """Multiplies a damping when the objective on the curvature batches, averaged over ``window`` updates, has
    not improved for more than ``patience`` windows in a row.

    Args:
        quantity, factor, limit: see :class:`~gnewton.optim.controllers.controller.QuantityController`.
        window: updates whose mean is one value, >= 1.
        patience: windows without improvement that are let pass, >= 0.
        threshold: share of the best value by which a better one must be lower, >= 0.
    """

    def __init__(
        self,
        quantity: str,
        factor: float,
        limit: float | None = None,
        *,
        window: int = 20,
        patience: int = 2,
        threshold: float = 1e-3,
    ) -> None:
        super().__init__(quantity, factor, limit)
        for name, value, least in (("window", window, 1), ("patience", patience, 0)):
            if not (isinstance(value, int) and value >= least):
                raise InputError(f"{name}={value}: must be an integer >= {least}")
        if not threshold >= 0:
            raise InputError(f"threshold={threshold}: must be >= 0")
        self._window = window
        self._patience = patience
        self._threshold = threshold
        self._values: list[float] = []
        self._best = math.inf
        self._bad = 0

    def settle(self, site: Site) -> Proposal:
        """Take in the objective, multiply if it is time, then solve."""
        self._values.append(site.objective)
        if len(self._values) == self._window:
            mean = math.fsum(self._values) / self._window
            self._values = []
            if mean < self._best - self._threshold * abs(self._best) or self._best == math.inf:
                self._best, self._bad = mean, 0
            else:
                self._bad += 1
            if self._bad > self._patience:
                self.multiply()
                self._bad = 0
        return self.propose(site)

    def state_dict(self) -> dict[str, Any]:
        """The factors, the values of the present window, the best one and the windows since."""
        return {
            **super().state_dict(),
            "values": list(self._values),
            "best": self._best,
            "bad": self._bad,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        super().load_state_dict(state)
        self._values, self._best, self._bad = list(state["values"]), state["best"], state["bad"]
