"""torchvision's vision transformer, with an attention that can be differentiated many times and hooked."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torchvision.models import VisionTransformer


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


def vision_transformer(
    *,
    channels: int,
    outputs: int,
    image_size: int,
    patch_size: int,
    depth: int,
    heads: int,
    width: int,
    mlp_width: int,
    dropout: float,
    attention_dropout: float,
) -> nn.Module:
    """VisionTransformer with torchvision's initialisation, for images (channels, image_size, image_size)."""
    network = VisionTransformer(
        image_size=image_size,
        patch_size=patch_size,
        num_layers=depth,
        num_heads=heads,
        hidden_dim=width,
        mlp_dim=mlp_width,
        dropout=dropout,
        attention_dropout=attention_dropout,
        num_classes=outputs,
    )
    if channels != 3:
        network.conv_proj = nn.Conv2d(channels, width, kernel_size=patch_size, stride=patch_size)
        nn.init.trunc_normal_(network.conv_proj.weight, std=1 / math.sqrt(channels * patch_size**2))
        nn.init.zeros_(network.conv_proj.bias)
    for block in network.encoder.layers:
        block.self_attention = SelfAttention(width, heads, attention_dropout)
    return network
