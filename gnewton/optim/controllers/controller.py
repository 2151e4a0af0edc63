"""The interface of the controllers, and the simple ones: constant, geometric, on a plateau."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar

from torch import Tensor

from gnewton.arguments import check_options
from gnewton.errors import InputError
from gnewton.optim.hyperparameters import PlateauHyperparameters, QuantityHyperparameters
from gnewton.optim.rate_rule import Proposal, RateRule

STEP_SIZE = "step_size"
INTERNAL_DAMPING = "internal_damping"
QUANTITIES = (STEP_SIZE, INTERNAL_DAMPING)
"""What a controller moves: λ_1, the factor on all rates, or λ_int, the weight of the cubic or ridge term."""


class Site(ABC):
    """An update of the rates as a controller sees it.

    Step size and internal damping are factors on the values in the options of the optimizer.
    """

    @property
    @abstractmethod
    def objective(self) -> float:
        """The objective, to be minimised, on the curvature batch before the step."""

    @abstractmethod
    def propose(self, step_size: float, internal_damping: float) -> Proposal:
        """The rates solved with λ_int times ``internal_damping``, for steps with λ_1 times ``step_size``."""

    @abstractmethod
    def predicted(self, proposal: Proposal, step_size: float, internal_damping: float) -> float:
        """The decrease of the model by the step of a proposal."""

    @abstractmethod
    def decreases(self, proposal: Proposal, step_size: float, slices: int) -> Tensor:
        """The decrease of the objective by that step on equal slices of the curvature batch.

        Returns:
            float64 on the CPU, (slices,), or fewer where the batch has fewer samples.
        """

    @abstractmethod
    def displacement(self) -> tuple[float, float] | None:
        """⟨∇f, w⟩ and wᵀ∇²f w on the curvature batch, with −w the displacement since the last update.

        None if the parameters did not move, or a number is not finite.
        """


class Controller(ABC):
    """A rule that moves the step size or the internal damping from update to update.

    Attributes:
        step_size, internal_damping: the factors on λ_1 and λ_int in force.
        watches_displacement: whether it uses :meth:`Site.displacement`.
    """

    watches_displacement: ClassVar[bool] = False

    def __init__(self) -> None:
        self.step_size = 1.0
        self.internal_damping = 1.0

    @property
    def quantity(self) -> str | None:
        """What moves, one of :data:`QUANTITIES`; None: nothing."""
        return None

    def check(self, rule: RateRule) -> None:
        """Make sure that what moves has an effect on the rates.

        Raises:
            InputError: if λ_int moves and the rates do not depend on it.
        """
        if self.quantity == INTERNAL_DAMPING and not rule.damped:
            raise InputError(
                f"controller={type(self).__name__}: it moves the internal damping, which needs "
                "internal_damping > 0 and a solver other than newton"
            )

    def begin(self, step_size: float, period: int) -> None:  # noqa: B027 - most controllers do not need it
        """Take in the initial λ_1 and the number of steps between two updates."""

    @abstractmethod
    def settle(self, site: Site) -> Proposal:
        """Move the factors and choose the rates of an update; not called at warm-up updates."""

    def readings(self) -> dict[str, float]:
        """Values measured at the last update, by column of rates.csv."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """The state from which :meth:`load_state_dict` continues exactly."""
        return {"step_size": self.step_size, "internal_damping": self.internal_damping}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the value of :meth:`state_dict`."""
        self.step_size, self.internal_damping = state["step_size"], state["internal_damping"]


class Constant(Controller):
    """λ_1 and λ_int keep the values of the options."""

    def settle(self, site: Site) -> Proposal:
        """The rates at the values of the options."""
        return site.propose(1.0, 1.0)


class QuantityController(Controller):
    """A controller that multiplies the step size or the internal damping by a constant factor, up to a limit.

    Args:
        quantity: one of :data:`QUANTITIES`.
        factor: the factor > 0: below 1 the quantity falls, above 1 it rises.
        limit: last value, as a multiple of the initial one; None: no limit.

    Raises:
        InputError: for an unknown quantity, a factor that is not positive or a limit on the wrong side of 1.
    """

    def __init__(self, quantity: str, factor: float, limit: float | None) -> None:
        super().__init__()
        check_options(QuantityHyperparameters, quantity=quantity, factor=factor, limit=limit)
        if limit is not None and (limit > 1 if factor < 1 else limit < 1):
            side = "> 0 and <= 1, the quantity falls" if factor < 1 else ">= 1, the quantity rises"
            raise InputError(f"limit={limit}: must be {side}")
        self._quantity = quantity
        self._factor = factor
        self._limit = limit

    @property
    def quantity(self) -> str | None:
        """The chosen quantity."""
        return self._quantity

    def multiply(self) -> None:
        """Multiply the quantity once."""
        value = getattr(self, self._quantity) * self._factor
        if self._limit is not None:
            value = max(value, self._limit) if self._factor < 1 else min(value, self._limit)
        setattr(self, self._quantity, value)

    def propose(self, site: Site) -> Proposal:
        """The rates at the current factors."""
        return site.propose(self.step_size, self.internal_damping)


class Geometric(QuantityController):
    """λ_k = λ_0 · factor^k at the k-th update after the warm-up, k = 0, 1, …, within a limit.

    Args:
        quantity, factor, limit: see :class:`QuantityController`.
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
        """The factors, and whether there was an update."""
        return {**super().state_dict(), "started": self._started}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the value of :meth:`state_dict`."""
        super().load_state_dict(state)
        self._started = bool(state["started"])


class Plateau(QuantityController):
    """Multiplies the quantity when the objective has stopped falling.

    That is when its mean over ``window`` updates, on the curvature batches, has not improved for more than
    ``patience`` windows in a row.

    Args:
        quantity, factor, limit: see :class:`QuantityController`.
        window: number of updates in a mean, >= 1.
        patience: number of windows without improvement that are tolerated, >= 0.
        threshold: least improvement, as a share of the best mean, >= 0.
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
        check_options(PlateauHyperparameters, window=window, patience=patience, threshold=threshold)
        self._window = window
        self._patience = patience
        self._threshold = threshold
        self._values: list[float] = []
        self._best = math.inf
        self._bad = 0

    def settle(self, site: Site) -> Proposal:
        """Add the objective to the window, multiply if the patience is over, then solve."""
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
        """The factors, the values of the current window, the best mean and the number of windows since."""
        return {
            **super().state_dict(),
            "values": list(self._values),
            "best": self._best,
            "bad": self._bad,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the value of :meth:`state_dict`."""
        super().load_state_dict(state)
        self._values, self._best, self._bad = list(state["values"]), state["best"], state["bad"]
