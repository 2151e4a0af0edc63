"""Chains of linear layers: the perceptron and the auto-encoder."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from gnewton.models.network_options import AutoEncoder, Mlp
from gnewton.models.network_parts import input_size, linear_layers, mismatch
from gnewton.models.widths import expand_widths
from gnewton.tasks import Reconstruction, Task


def mlp(options: Mlp, task: Task) -> nn.Sequential:
    """Flatten, ``hidden1`` …, ``output``: (N, *input_shape) -> (N, outputs)."""
    inputs, widths = input_size(options.name, task), expand_widths(options.widths)
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    layers.update(linear_layers(inputs, widths, options.activation, "hidden", ("output", task.outputs)))
    return nn.Sequential(layers)


def autoencoder(options: AutoEncoder, task: Task) -> nn.Sequential:
    """``encoder1`` …, linear ``code``, ``decoder1`` …, ``output``: (N, *input_shape) -> (N, pixels)."""
    if not isinstance(task, Reconstruction) or task.outputs != task.input_size:
        raise mismatch(options.name, "data whose target is the input (task: reconstruction)", task)
    inputs, widths = input_size(options.name, task), expand_widths(options.widths)
    code, act = options.code, options.activation
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    layers.update(linear_layers(inputs, widths, act, "encoder", ("code", code)))
    layers.update(linear_layers(code, widths[::-1], act, "decoder", ("output", inputs)))
    return nn.Sequential(layers)
