"""LeNet and the perceptron with units of their own for every parameter tensor, for ``import=``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gnewton.models.network_options import LeNet, Mlp
from gnewton.plugins import model, option

if TYPE_CHECKING:
    from torch import nn

    from gnewton.tasks import Task


def rescaled(network: nn.Module, spread: int) -> nn.Module:
    """See :func:`scripts.paper.units.rescale`; recipes are read without torch."""
    from scripts.paper.units import rescale

    return rescale(network, spread)


@model("rescaled_lenet")
class RescaledLeNet(LeNet):
    """LeNet, every parameter tensor stored in units of its own."""

    spread: int = option(0, help="the units are 2^-spread to 2^spread", at_least=0)

    def build(self, task: Task) -> nn.Module:
        """See :meth:`ModelRecipe.build`."""
        return rescaled(super().build(task), self.spread)


@model("rescaled_mlp")
class RescaledMlp(Mlp):
    """The perceptron, every parameter tensor stored in units of its own."""

    spread: int = option(0, help="the units are 2^-spread to 2^spread", at_least=0)

    def build(self, task: Task) -> nn.Module:
        """See :meth:`ModelRecipe.build`."""
        return rescaled(super().build(task), self.spread)
