"""LeNet-5, for images of at least 16×16 pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gnewton.models import demands
from gnewton.models.activations import ACTIVATIONS
from gnewton.models.network import NetworkRecipe
from gnewton.models.recipe import MODELS
from gnewton.options import option

if TYPE_CHECKING:
    from torch import nn

    from gnewton.tasks import Task


@MODELS.register("lenet")
@dataclass(kw_only=True)
class LeNet(NetworkRecipe):
    """Two 5×5 convolutions and three linear layers: (N, C, H, W) -> (N, outputs).

    LeCun, Bottou, Bengio & Haffner, "Gradient-based learning applied to document recognition" (1998).

    Attributes:
        activation: after each layer but the last.
        pooling: of each convolution's 2×2 windows, ``max`` or ``average``.
    """

    activation: str = option(choices=ACTIVATIONS)
    pooling: str = option(choices=("max", "average"))

    def network(self, task: Task) -> nn.Module:
        """``conv1``, ``conv2``, ``linear1``, ``linear2``, ``output``."""
        from gnewton.models.nets.convolutional import lenet

        shape = demands.image_shape(self.name, task, least=16)
        return lenet(shape, task.outputs, self.activation, self.pooling)
