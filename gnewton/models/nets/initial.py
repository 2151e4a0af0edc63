"""Initialisation of linear and convolutional layers, and the NTK parameterisation."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

Layer = nn.Linear | nn.Conv2d


def layers(network: nn.Module) -> Iterator[Layer]:
    """Every linear and convolutional layer of ``network``, in order."""
    for module in network.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            yield module


def fan_in(layer: Layer) -> int:
    """Numbers that one output of ``layer`` is a weighted sum of."""
    return layer.weight[0].numel()


@torch.no_grad()
def draw_weights(network: nn.Module, sigma_w: float) -> None:
    """Draw the weights of every layer from N(0, sigma_w²/fan_in) and set its bias to 0.

    Normalisation layers, embeddings and tokens are left as they are.
    """
    for layer in layers(network):
        nn.init.normal_(layer.weight, std=sigma_w / math.sqrt(fan_in(layer)))
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


@torch.no_grad()
def divide_inputs(network: nn.Module) -> None:
    """Multiply the weights of every layer by sqrt(fan_in) and divide its input by the same number.

    This is the NTK parameterisation (Jacot, Gabriel & Hongler 2018). The network stays the same function of
    its inputs. Parameter names do not change, and hooks registered later see the divided input.
    """
    for layer in layers(network):
        scale = math.sqrt(fan_in(layer))
        layer.weight.mul_(scale)
        layer.register_forward_pre_hook(DivideInput(scale))


class DivideInput:
    """Forward pre-hook that divides the input of a layer by a constant; can be copied and pickled."""

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def __call__(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The inputs of ``layer``, divided."""
        return tuple(entry / self.scale for entry in inputs)
