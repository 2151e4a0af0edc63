"""torchvision's residual networks, for any number of channels and for small images."""

from __future__ import annotations

from torch import nn
from torchvision import models


def resnet(depth: int, channels: int, outputs: int, small_images: bool) -> nn.Module:
    """ResNet-``depth`` with torchvision's initialisation and no activation in place."""
    network: nn.Module = getattr(models, f"resnet{depth}")(num_classes=outputs)
    if small_images or channels != 3:
        size, stride = (3, 1) if small_images else (7, 2)
        network.conv1 = nn.Conv2d(channels, 64, size, stride, padding=size // 2, bias=False)
        nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    if small_images:
        network.maxpool = nn.Identity()
    for module in network.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    return network
