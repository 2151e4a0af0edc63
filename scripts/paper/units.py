"""Parameters stored in units of their own: θ_s = a_s θ̃_s, with powers of two for a_s.

The network is the same function to the last bit, whatever the number format.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization


class Times(nn.Module):
    """The parameter that is ``factor`` times the stored one."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, stored: Tensor) -> Tensor:
        """θ of θ̃."""
        return stored * self.factor

    def right_inverse(self, value: Tensor) -> Tensor:
        """θ̃ of θ."""
        return value / self.factor


def rescale(network: nn.Module, spread: int) -> nn.Module:
    """Store every parameter as θ/a with a = 2^k, k running through −spread … spread. In place.

    With ``spread=0`` the network computes as before, under the same names as with any other spread.
    """
    with torch.no_grad():
        for place, name in enumerate([name for name, _ in network.named_parameters()]):
            owner, _, attribute = name.rpartition(".")
            power = 7 * place % (2 * spread + 1) - spread  # neighbours get different ones
            register_parametrization(network.get_submodule(owner), attribute, Times(2.0**power))
    return network
