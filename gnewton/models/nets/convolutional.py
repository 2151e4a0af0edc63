"""Plain convolutional networks: LeNet and VGG."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from gnewton.models.activations import activation
from gnewton.models.nets.dense import NamedLayers, hidden_layers

Shape = tuple[int, int, int]


def lenet(shape: Shape, outputs: int, act: str, pooling: str) -> nn.Sequential:
    """LeNet-5 for images of ``shape`` (channels, height, width), at least 16×16."""
    channels, height, width = shape
    pool = nn.MaxPool2d if pooling == "max" else nn.AvgPool2d
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for number, (before, after) in enumerate([(channels, 6), (6, 16)], start=1):
        layers[f"conv{number}"] = nn.Conv2d(before, after, kernel_size=5)
        layers[f"conv{number}_{act}"] = activation(act)
        layers[f"pool{number}"] = pool(2)
        height, width = (height - 4) // 2, (width - 4) // 2
    layers["flatten"] = nn.Flatten()
    layers.update(_classifier(16 * height * width, [120, 84], outputs, act))
    return nn.Sequential(layers)


def vgg(
    shape: Shape,
    outputs: int,
    *,
    stages: Sequence[Sequence[int]],
    batch_norm: bool,
    classifier: Sequence[int],
    act: str,
) -> nn.Sequential:
    """VGG for images of ``shape`` (channels, height, width), a side of at least 2^stages."""
    before, height, width = shape
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    number = 0
    for stage, channels in enumerate(stages, start=1):
        for after in channels:
            number += 1
            layers[f"conv{number}"] = nn.Conv2d(before, after, kernel_size=3, padding=1)
            if batch_norm:
                layers[f"norm{number}"] = nn.BatchNorm2d(after)
            layers[f"conv{number}_{act}"] = activation(act)
            before = after
        layers[f"pool{stage}"] = nn.MaxPool2d(2)
        height, width = height // 2, width // 2
    layers["flatten"] = nn.Flatten()
    layers.update(_classifier(before * height * width, classifier, outputs, act))
    return nn.Sequential(layers)


def _classifier(inputs: int, widths: Sequence[int], outputs: int, act: str) -> NamedLayers:
    """``linear1`` …, ``output``: (N, inputs) -> (N, outputs)."""
    yield from hidden_layers(inputs, widths, act, "linear")
    yield "output", nn.Linear([inputs, *widths][-1], outputs)
