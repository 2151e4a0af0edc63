"""torchvision's ResNet and vision transformer, in a form that can be differentiated many times and hooked."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torchvision import models

from gnewton.models.network_options import ResNet, Vit
from gnewton.models.sequential import image_shape, mismatch
from gnewton.tasks import Task


def resnet(options: ResNet, task: Task) -> nn.Module:
    """ResNet of any number of input channels, with torchvision's initialisation, nothing in place."""
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


def vision_transformer(options: Vit, task: Task) -> nn.Module:
    """VisionTransformer of any number of input channels, with torchvision's initialisation.

    Layers are named as torchvision names them, ``in_proj`` being a linear layer. The attention is written out
    in matrix products, which can be differentiated any number of times, in training and in evaluation.
    """
    channels, height, width = image_shape(options.name, task)
    patch = options.patch_size
    if height != width or height % patch:
        needs = f"square images whose side is a multiple of model.patch_size={patch}"
        raise mismatch(options.name, needs, task)
    network = models.VisionTransformer(
        image_size=height,
        patch_size=patch,
        num_layers=options.depth,
        num_heads=options.heads,
        hidden_dim=options.width,
        mlp_dim=options.mlp_width,
        dropout=options.dropout,
        attention_dropout=options.attention_dropout,
        num_classes=task.outputs,
    )
    if channels != 3:
        network.conv_proj = nn.Conv2d(channels, options.width, kernel_size=patch, stride=patch)
        nn.init.trunc_normal_(network.conv_proj.weight, std=1 / math.sqrt(channels * patch**2))
        nn.init.zeros_(network.conv_proj.bias)
    for block in network.encoder.layers:
        block.self_attention = SelfAttention(options.width, options.heads, options.attention_dropout)
    return network


class SelfAttention(nn.Module):
    """Multi-head self-attention: softmax(q kᵀ/√d) v per head, between two linear layers.

    The same function and initialisation as :class:`torch.nn.MultiheadAttention`, whose fused kernels have no
    second derivative or no forward mode, and whose weights no hook sees.

    Args:
        width: features of a token, a multiple of ``heads``.
        heads: number of heads.
        dropout: probability of zeroing an attention weight, in training.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj = nn.Linear(width, 3 * width)
        self.dropout = nn.Dropout(dropout)
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj.weight)
        nn.init.zeros_(self.in_proj.bias)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, need_weights: bool = False
    ) -> tuple[Tensor, None]:
        """Attend to the tokens ``query`` (N, T, width) -> (N, T, width).

        ``key`` and ``value`` are the same tokens; the signature is the one torchvision's blocks call.
        """
        samples, tokens, width = query.shape
        heads = self.in_proj(query).reshape(samples, tokens, 3, self.heads, width // self.heads)
        q, k, v = heads.permute(2, 0, 3, 1, 4).unbind(0)
        weights = torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1]), dim=-1)
        attended = (self.dropout(weights) @ v).transpose(1, 2).reshape(samples, tokens, width)
        return self.out_proj(attended), None
