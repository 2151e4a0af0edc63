"""Residual networks of torchvision."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gnewton.models import demands
from gnewton.models.network import NetworkRecipe
from gnewton.models.recipe import MODELS
from gnewton.options import option

if TYPE_CHECKING:
    from torch import nn

    from gnewton.tasks import Task

DEPTHS = (18, 34, 50, 101, 152)


@MODELS.register("resnet")
@dataclass(kw_only=True)
class ResNet(NetworkRecipe):
    """torchvision's ResNet: (N, C, H, W) -> (N, outputs), images of any size.

    He, Zhang, Ren & Sun, "Deep residual learning for image recognition" (2016).

    Attributes:
        depth: layers: 18, 34, 50, 101 or 152.
        small_images: begin with a 3×3 convolution of stride 1 and no pooling, as for CIFAR-10, instead of the
            7×7 convolution of stride 2 and a pooling.
    """

    depth: int = option(at_least=1)
    small_images: bool = option()

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """A depth that torchvision does not have."""
        if self.depth not in DEPTHS:
            yield "depth", f"must be one of {', '.join(map(str, DEPTHS))}"

    def network(self, task: Task) -> nn.Module:
        """Layers named as torchvision names them: ``conv1``, ``layer1.0.conv1`` …, ``fc``."""
        from gnewton.models.nets.residual import resnet

        channels, _, _ = demands.image_shape(self.name, task)
        return resnet(self.depth, channels, task.outputs, self.small_images)
