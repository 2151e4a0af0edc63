"""Plain convolutional networks: LeNet and VGG."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from gnewton.models.network_options import VGG_LAYOUTS, LeNet, Vgg
from gnewton.models.network_parts import activation, image_shape, linear_layers
from gnewton.models.widths import expand_widths
from gnewton.tasks import Task


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
