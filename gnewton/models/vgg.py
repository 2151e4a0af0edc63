"""VGG networks of any classifier, with or without batch normalisation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gnewton.models import demands
from gnewton.models.activations import ACTIVATIONS
from gnewton.models.network import NetworkRecipe
from gnewton.models.recipe import MODELS
from gnewton.models.widths import expand_widths, width_complaints
from gnewton.options import option

if TYPE_CHECKING:
    from torch import nn

    from gnewton.tasks import Task

# Channels of the 3×3 convolutions in each of the five stages; a 2×2 max pooling ends every stage.
LAYOUTS: dict[str, tuple[tuple[int, ...], ...]] = {
    "A": ((64,), (128,), (256,) * 2, (512,) * 2, (512,) * 2),
    "B": ((64,) * 2, (128,) * 2, (256,) * 2, (512,) * 2, (512,) * 2),
    "D": ((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3),
    "E": ((64,) * 2, (128,) * 2, (256,) * 4, (512,) * 4, (512,) * 4),
}


@MODELS.register("vgg")
@dataclass(kw_only=True)
class Vgg(NetworkRecipe):
    """Stages of 3×3 convolutions, each halving the image, and a classifier: (N, C, H, W) -> (N, outputs).

    Simonyan & Zisserman, "Very deep convolutional networks for large-scale image recognition" (2015); the
    names of the networks count its three linear layers.
    An image of 32×32 pixels ends as 512 features, one of H×W as 512·⌊H/32⌋·⌊W/32⌋.

    Attributes:
        layout: A, B, D or E, the networks of 11, 13, 16 and 19 layers.
        batch_norm: normalise the output of each convolution over the batch.
        classifier: units of the hidden layers of the classifier, with the shorthand of
            :mod:`gnewton.models.widths`; empty for a single linear layer.
        activation: after each layer but the last.
    """

    layout: str = option(choices=LAYOUTS)
    batch_norm: bool = option()
    classifier: list[str] = option()
    activation: str = option(choices=ACTIVATIONS)

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Entries of ``classifier`` that are no widths."""
        for complaint in width_complaints(self.classifier):
            yield "classifier", complaint

    def network(self, task: Task) -> nn.Module:
        """``conv1`` …, ``linear1`` …, ``output``."""
        from gnewton.models.nets.convolutional import vgg

        stages = LAYOUTS[self.layout]
        return vgg(
            demands.image_shape(self.name, task, least=2 ** len(stages)),
            task.outputs,
            stages=stages,
            batch_norm=self.batch_norm,
            classifier=expand_widths(self.classifier),
            act=self.activation,
        )
