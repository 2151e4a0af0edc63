"""Multi-layer perceptron."""

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


@MODELS.register("mlp")
@dataclass(kw_only=True)
class Mlp(NetworkRecipe):
    """Linear layers on flattened inputs: (N, *input_shape) -> (N, outputs).

    Attributes:
        widths: units of the hidden layers, with the shorthand of :mod:`gnewton.models.widths`; may be empty.
        activation: after each hidden layer.
    """

    widths: list[str] = option()
    activation: str = option(choices=ACTIVATIONS)

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Entries of ``widths`` that are no widths."""
        for complaint in width_complaints(self.widths):
            yield "widths", complaint

    def network(self, task: Task) -> nn.Module:
        """Flatten, ``hidden1`` …, ``output``."""
        from gnewton.models.nets.dense import mlp

        inputs = demands.input_size(self.name, task)
        return mlp(inputs, expand_widths(self.widths), task.outputs, self.activation)
