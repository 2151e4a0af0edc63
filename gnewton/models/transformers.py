"""Transformers, for images and for tokens, in operations that can be differentiated many times and hooked.

Attention is written out in matrix products: torch's fused kernels have no second derivative.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from gnewton.models.feedforward import image_shape, mismatch
from gnewton.models.network_options import Transformer, Vit
from gnewton.tasks import Task, TokenClassification

# --- images -------------------------------------------------------------------------------------------------


def vision_transformer(options: Vit, task: Task) -> nn.Module:
    """VisionTransformer of any number of input channels, with torchvision's initialisation.

    Layers are named as torchvision names them, ``in_proj`` being a linear layer. The attention is written out
    in matrix products, which can be differentiated any number of times, in training and in evaluation.
    """
    from torchvision import models  # slow to load

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


# --- tokens -------------------------------------------------------------------------------------------------

EMBEDDING_DEVIATION = 0.02
"""Of the entries of the embeddings, as in GPT-2."""


def transformer(options: Transformer, task: Task) -> nn.Module:
    """The network for sequences of the length and the alphabet of the task.

    Raises:
        InputError: if the task is none of tokens.
    """
    if not isinstance(task, TokenClassification):
        raise mismatch(options.name, "tokens, as in data=tiny_text", task)
    (length,) = task.input_shape
    return CausalTransformer(
        task.symbols,
        length,
        task.outputs,
        width=options.width,
        depth=options.depth,
        heads=options.heads,
        expansion=options.expansion,
    )


class CausalAttention(nn.Module):
    """Multi-head self-attention of each token to itself and those before it: softmax(q kᵀ/√d + mask) v.

    Written out in matrix products: torch's fused kernels have no second derivative.

    Args:
        width: features of a token, a multiple of ``heads``.
        heads: number of heads.
        length: the most tokens of a sequence.
    """

    mask: Tensor

    def __init__(self, width: int, heads: int, length: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)
        later = torch.ones(length, length).triu(1).bool()
        self.register_buffer("mask", later, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Attend: (N, T, width) -> (N, T, width)."""
        samples, tokens, width = x.shape
        parts = self.in_proj(x).reshape(samples, tokens, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
        scores = scores.masked_fill(self.mask[:tokens, :tokens], -math.inf)
        attended = (torch.softmax(scores, dim=-1) @ v).transpose(1, 2).reshape(samples, tokens, width)
        out: Tensor = self.out_proj(attended)
        return out


class TransformerBlock(nn.Module):
    """x + attention(norm(x)), then x + perceptron(norm(x)), with GELU."""

    def __init__(self, width: int, heads: int, length: int, expansion: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = CausalAttention(width, heads, length)
        self.norm2 = nn.LayerNorm(width)
        self.hidden = nn.Linear(width, expansion * width)
        self.activation = nn.GELU()
        self.output = nn.Linear(expansion * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """One block: (N, T, width) -> (N, T, width)."""
        x = x + self.attention(self.norm1(x))
        out: Tensor = x + self.output(self.activation(self.hidden(self.norm2(x))))
        return out


class CausalTransformer(nn.Module):
    """Embedding of token and place, blocks, a normalisation and a linear layer: (N, T) -> (N, T, outputs).

    Args:
        symbols: kinds of tokens.
        length: the most tokens of a sequence.
        outputs: logits for each token.
        width, depth, heads, expansion: see :class:`~gnewton.models.network_options.Transformer`.
    """

    def __init__(
        self, symbols: int, length: int, outputs: int, *, width: int, depth: int, heads: int, expansion: int
    ) -> None:
        super().__init__()
        self.token = nn.Embedding(symbols, width)
        self.place = nn.Parameter(torch.empty(length, width))
        self.blocks = nn.ModuleList(TransformerBlock(width, heads, length, expansion) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, outputs)
        nn.init.normal_(self.token.weight, std=EMBEDDING_DEVIATION)
        nn.init.normal_(self.place, std=EMBEDDING_DEVIATION)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of the label at every token; those at a place depend on the tokens up to it."""
        x = self.token(tokens) + self.place[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.head(self.norm(x))
        return out
