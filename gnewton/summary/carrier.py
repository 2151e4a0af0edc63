"""A function of a network, evaluated while other tensors stand for the parameters of the network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn


class Carrier(nn.Module):
    """Calls a function with the network it holds.

    ``torch.func.functional_call`` swaps parameters for the length of one call of a module. A call of this
    one may hold anything: several methods of the network, and a loss that reads its weights.

    Args:
        base: the network, which stays as it is.
    """

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base

    def forward(self, function: Callable[[nn.Module], Any]) -> Any:
        """What ``function`` makes of the network."""
        return function(self.base)
