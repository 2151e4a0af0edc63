"""Feed-forward networks (perceptron, auto-encoder, LeNet, VGG, ResNet), and the layers that all share."""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from gnewton.errors import InputError
from gnewton.models.network_options import ACTIVATIONS, VGG_LAYOUTS, AutoEncoder, LeNet, Mlp, ResNet, Vgg
from gnewton.models.widths import expand_widths
from gnewton.tasks import Reconstruction, Task, TokenClassification

Layer = nn.Linear | nn.Conv2d
NamedLayers = Iterator[tuple[str, nn.Module]]


def activation(name: str) -> nn.Module:
    """A new module for an activation, never in place."""
    module: nn.Module = getattr(nn, ACTIVATIONS[name])()
    return module


def linear_layers(
    inputs: int, widths: Sequence[int], act: str, prefix: str, last: tuple[str, int]
) -> NamedLayers:
    """Linear layers ``prefix1``, ``prefix2`` … with their activations, then ``last``: (name, width)."""
    for number, (before, after) in enumerate(zip([inputs, *widths], widths, strict=False), start=1):
        yield f"{prefix}{number}", nn.Linear(before, after)
        yield f"{prefix}{number}_{act}", activation(act)
    name, outputs = last
    yield name, nn.Linear([inputs, *widths][-1], outputs)


def layers(network: nn.Module) -> Iterator[Layer]:
    """Every linear and convolutional layer of ``network``, in order."""
    for module in network.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            yield module


def initialise(network: nn.Module, sigma_w: float | None, scaling: bool) -> None:
    """Draw the weights (None: keep them); with ``scaling``, change to the NTK parameterisation. In place."""
    if sigma_w is not None:
        draw_weights(network, sigma_w)
    if scaling:
        divide_inputs(network)


def fan_in(layer: Layer) -> int:
    """How many inputs each output of ``layer`` is a weighted sum of."""
    return layer.weight[0].numel()


@torch.no_grad()
def draw_weights(network: nn.Module, sigma_w: float) -> None:
    """Draw the weights of every layer from N(0, sigma_w²/fan_in) and set its bias to 0.

    Normalisation layers, embeddings and tokens keep their values.
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


def input_size(name: str, task: Task) -> int:
    """How many numbers an input of ``task`` holds, for the network ``name``.

    Raises:
        InputError: if the task has no inputs, or they are no numbers to compute with.
    """
    if isinstance(task, TokenClassification):
        raise mismatch(name, "inputs that are numbers, one answer per sample", task)
    if not task.input_shape:
        raise mismatch(name, "inputs of at least one number", task)
    return task.input_size


def image_shape(name: str, task: Task, *, least: int = 1) -> tuple[int, int, int]:
    """(channels, height, width) of the images of ``task``, for the network ``name``.

    Raises:
        InputError: if the inputs are no images, or images of fewer than ``least`` pixels on a side.
    """
    if len(task.input_shape) != 3 or min(task.input_shape[1:]) < least:
        size = f" of at least {least}×{least} pixels" if least > 1 else ""
        raise mismatch(name, f"images (channels, height, width){size}", task)
    channels, height, width = task.input_shape
    return channels, height, width


def mismatch(name: str, needs: str, task: Task) -> InputError:
    """The error of a network ``name`` that needs what the data of ``task`` do not offer."""
    offer = f"inputs of shape {task.input_shape}" if task.input_shape else "no inputs"
    kind = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(task).__name__).lower()
    return InputError(f"model={name}: needs {needs}; data gives {offer} (task: {kind})")


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


def lenet(options: LeNet, task: Task) -> nn.Sequential:
    """``conv1``, ``conv2``, ``linear1``, ``linear2``, ``output``, for images of at least 16×16 pixels."""
    channels, height, width = image_shape(options.name, task, least=16)
    act = options.activation
    pool = nn.MaxPool2d if options.pooling == "max" else nn.AvgPool2d
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for number, (before, after) in enumerate([(channels, 6), (6, 16)], start=1):
        layers[f"conv{number}"] = nn.Conv2d(before, after, kernel_size=5)
        layers[f"conv{number}_{act}"] = activation(act)
        layers[f"pool{number}"] = pool(2)
        height, width = (height - 4) // 2, (width - 4) // 2
    layers["flatten"] = nn.Flatten()
    output = ("output", task.outputs)
    layers.update(linear_layers(16 * height * width, [120, 84], act, "linear", output))
    return nn.Sequential(layers)


def vgg(options: Vgg, task: Task) -> nn.Sequential:
    """``conv1`` …, ``linear1`` …, ``output``, for images with a side of at least 2^stages pixels."""
    stages, act = VGG_LAYOUTS[options.layout], options.activation
    before, height, width = image_shape(options.name, task, least=2 ** len(stages))
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    number = 0
    for stage, channels in enumerate(stages, start=1):
        for after in channels:
            number += 1
            layers[f"conv{number}"] = nn.Conv2d(before, after, kernel_size=3, padding=1)
            if options.batch_norm:
                layers[f"norm{number}"] = nn.BatchNorm2d(after)
            layers[f"conv{number}_{act}"] = activation(act)
            before = after
        layers[f"pool{stage}"] = nn.MaxPool2d(2)
        height, width = height // 2, width // 2
    layers["flatten"] = nn.Flatten()
    widths = expand_widths(options.classifier)
    output = ("output", task.outputs)
    layers.update(linear_layers(before * height * width, widths, act, "linear", output))
    return nn.Sequential(layers)


def resnet(options: ResNet, task: Task) -> nn.Module:
    """ResNet of any number of input channels, with torchvision's initialisation, nothing in place."""
    from torchvision import models  # slow to load

    channels, _, _ = image_shape(options.name, task)
    network: nn.Module = getattr(models, f"resnet{options.depth}")(num_classes=task.outputs)
    if options.small_images or channels != 3:
        size, stride = (3, 1) if options.small_images else (7, 2)
        network.conv1 = nn.Conv2d(channels, 64, size, stride, padding=size // 2, bias=False)
        nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    if options.small_images:
        network.maxpool = nn.Identity()
    for module in network.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    return network
