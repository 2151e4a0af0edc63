"""Averages of the summary over updates."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor

from gnewton.arguments import check_options
from gnewton.optim.hyperparameters import (
    ExponentialHyperparameters,
    StaticHyperparameters,
    UniformHyperparameters,
)


class Averaging(ABC):
    """A running average of one float64 vector, (ḡ, H̄, D3) packed together, on the CPU.

    Attributes:
        batches: number of vectors per update of the rates, each measured on its own batch.
    """

    batches: int = 1

    @abstractmethod
    def update(self, value: Tensor) -> Tensor:
        """Add the vector of this update, never kept by reference, and return the average to use now."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """The state from which :meth:`load_state_dict` continues exactly."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the value of :meth:`state_dict`."""


class NoAveraging(Averaging):
    """The summary of the current update alone."""

    def update(self, value: Tensor) -> Tensor:
        """Return a copy of ``value``: nothing is averaged."""
        return value.clone()

    def state_dict(self) -> dict[str, Any]:
        """An empty dictionary, since there is no memory."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Do nothing: there is no state."""


class ExponentialAveraging(Averaging):
    """a_k = Σ_j c^(k−j) x_j / Σ_j c^(k−j): exponential weights that sum to one from the first update on.

    Args:
        coefficient: c in [0, 1); 0 keeps only the current update.
    """

    def __init__(self, coefficient: float) -> None:
        check_options(ExponentialHyperparameters, coefficient=coefficient)
        self._coefficient = coefficient
        self._sum: Tensor | None = None
        self._weight = 0.0

    def update(self, value: Tensor) -> Tensor:
        """Multiply the older sum by c, add ``value``, and return the weighted mean."""
        older = self._sum * self._coefficient if self._sum is not None else 0.0
        self._sum = value + older
        self._weight = 1.0 + self._coefficient * self._weight
        return self._sum / self._weight

    def state_dict(self) -> dict[str, Any]:
        """The weighted sum and its weight."""
        return {"sum": self._sum, "weight": self._weight}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the weighted sum and its weight."""
        self._sum, self._weight = state["sum"], float(state["weight"])


class UniformAveraging(Averaging):
    """Two running means, one in use and one under construction, swapped every ``period`` updates.

    From the second swap on, the mean in use covers between one and two periods: the updates of the last full
    period and those since. Before the first swap it covers all updates.

    Args:
        period: updates between swaps, at least 1.
    """

    def __init__(self, period: int) -> None:
        check_options(UniformHyperparameters, period=period)
        self._period = period
        self._sums: list[Tensor] | None = None
        self._counts = [0, 0]

    def update(self, value: Tensor) -> Tensor:
        """Add ``value`` to both means, return the one in use, and swap them if the other is complete."""
        if self._sums is None:
            self._sums = [value.new_zeros(value.shape), value.new_zeros(value.shape)]
        used, built = self._sums[0] + value, self._sums[1] + value
        self._counts = [count + 1 for count in self._counts]
        average = used / self._counts[0]
        if self._counts[1] == self._period:
            self._sums, self._counts = [built, value.new_zeros(value.shape)], [self._counts[1], 0]
        else:
            self._sums = [used, built]
        return average

    def state_dict(self) -> dict[str, Any]:
        """Both sums and the number of updates in each."""
        return {"sums": self._sums, "counts": list(self._counts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore both sums and their counts."""
        self._sums, self._counts = state["sums"], list(state["counts"])


class StaticAveraging(Averaging):
    """The mean of ``batches`` summaries of the same update, without older ones.

    Args:
        batches: number of batches per update, at least 1.
    """

    def __init__(self, batches: int) -> None:
        check_options(StaticHyperparameters, batches=batches)
        self.batches = batches
        self._sum: Tensor | None = None
        self._count = 0

    def update(self, value: Tensor) -> Tensor:
        """Add ``value`` and return the mean of this update so far; after a complete mean, start a new one."""
        total = value.clone() if self._sum is None else self._sum + value
        self._count += 1
        average = total / self._count
        self._sum = total
        if self._count == self.batches:
            self._sum, self._count = None, 0
        return average

    def state_dict(self) -> dict[str, Any]:
        """The sum and the number of its summaries; empty between updates."""
        return {"sum": self._sum, "count": self._count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the sum and its count."""
        self._sum, self._count = state["sum"], int(state["count"])
