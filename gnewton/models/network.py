"""Options that every network shares: how its weights are drawn, and in which parameterisation."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gnewton.models.recipe import ModelRecipe
from gnewton.options import option

if TYPE_CHECKING:
    from torch import nn

    from gnewton.tasks import Task


@dataclass(kw_only=True)
class NetworkRecipe(ModelRecipe):
    """A network of linear and convolutional layers.

    Attributes:
        sigma_w: weights are drawn from N(0, sigma_w²/fan_in) and biases set to 0; None keeps the
            initialisation of torch or torchvision.
        scaling: the NTK parameterisation: weights sqrt(fan_in) times larger, and the input of each layer
            divided by sqrt(fan_in). The same random draws give the same function.
    """

    sigma_w: float | None = option(above=0)
    scaling: bool = option()

    @abstractmethod
    def network(self, task: Task) -> nn.Module:
        """The layers, with the initialisation torch gives them.

        Raises:
            InputError: if the network cannot serve the task's input shape or kind.
        """

    def build(self, task: Task) -> nn.Module:
        """Build the network and draw its weights from torch's global random stream.

        Raises:
            InputError: if the network cannot serve the task's input shape or kind.
        """
        from gnewton.models.nets.initial import divide_inputs, draw_weights

        network = self.network(task)
        if self.sigma_w is not None:
            draw_weights(network, self.sigma_w)
        if self.scaling:
            divide_inputs(network)
        return network
