"""Auto-encoder of linear layers."""

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


@MODELS.register("autoencoder")
@dataclass(kw_only=True)
class AutoEncoder(NetworkRecipe):
    """Encoder, linear code and mirrored decoder: (N, *input_shape) -> logits (N, pixels).

    The defaults are the network of Hinton & Salakhutdinov, "Reducing the dimensionality of data with neural
    networks" (2006), for MNIST.

    Attributes:
        widths: units of the encoder's hidden layers, with the shorthand of :mod:`gnewton.models.widths`; the
            decoder has them in reverse.
        code: units of the code, which has no activation.
        activation: after each hidden layer.
    """

    widths: list[str] = option()
    code: int = option(at_least=1)
    activation: str = option(choices=ACTIVATIONS)

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Entries of ``widths`` that are no widths."""
        for complaint in width_complaints(self.widths):
            yield "widths", complaint

    def network(self, task: Task) -> nn.Module:
        """``encoder1`` …, ``code``, ``decoder1`` …, ``output``."""
        from gnewton.models.nets.dense import autoencoder
        from gnewton.tasks import Reconstruction

        if not isinstance(task, Reconstruction) or task.outputs != task.input_size:
            raise demands.mismatch(self.name, "data whose target is the input (task: reconstruction)", task)
        pixels = demands.input_size(self.name, task)
        return autoencoder(pixels, expand_widths(self.widths), self.code, self.activation)
