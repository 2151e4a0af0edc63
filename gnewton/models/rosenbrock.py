"""Rosenbrock functions of x_1 … x_n as modules, with two layouts of their coordinates in parameters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gnewton.models.network_options import Rosenbrock
from gnewton.models.sequential import mismatch
from gnewton.tasks import Minimisation, Task


class RosenbrockFunction(nn.Module, ABC):
    """Σ (x_odd − a)² + b (x_odd² − x_even)² over consecutive pairs of coordinates."""

    def __init__(self, a: float, b: float) -> None:
        super().__init__()
        self.a = a
        self.b = b

    @abstractmethod
    def coordinates(self) -> tuple[Tensor, Tensor]:
        """(x_1, x_3 …) and (x_2, x_4 …), each of shape (n/2,)."""

    def forward(self, inputs: Tensor | None = None) -> Tensor:
        """The value, a scalar; ``inputs`` are ignored."""
        odds, evens = self.coordinates()
        return ((odds - self.a).square() + self.b * (odds.square() - evens).square()).sum()


class EvensOdds(RosenbrockFunction):
    """Two parameters, ``odds`` and ``evens``, of shape (n/2,)."""

    def __init__(self, start: Sequence[float], a: float, b: float) -> None:
        super().__init__(a, b)
        self.odds = nn.Parameter(torch.tensor(start[0::2], dtype=torch.get_default_dtype()))
        self.evens = nn.Parameter(torch.tensor(start[1::2], dtype=torch.get_default_dtype()))

    def coordinates(self) -> tuple[Tensor, Tensor]:
        """The two parameters."""
        return self.odds, self.evens


class Pairs(RosenbrockFunction):
    """n/2 parameters ``pairs.0``, ``pairs.1`` … of shape (2,)."""

    def __init__(self, start: Sequence[float], a: float, b: float) -> None:
        super().__init__(a, b)
        pairs = torch.tensor(start, dtype=torch.get_default_dtype()).reshape(-1, 2)
        self.pairs = nn.ParameterList(nn.Parameter(pair.clone()) for pair in pairs)

    def coordinates(self) -> tuple[Tensor, Tensor]:
        """First and second entries of the pairs."""
        odds, evens = torch.stack(list(self.pairs), dim=1).unbind(0)
        return odds, evens


def rosenbrock(options: Rosenbrock, task: Task) -> RosenbrockFunction:
    """The function at its start.

    Raises:
        InputError: if the data have inputs or targets.
    """
    if not isinstance(task, Minimisation):
        raise mismatch(options.name, "no data (task: minimisation)", task)
    start = options.start if len(options.start) == options.size else options.start * (options.size // 2)
    return (Pairs if options.form == "pairs" else EvensOdds)(start, options.a, options.b)
