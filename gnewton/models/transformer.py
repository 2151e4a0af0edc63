"""A small causal transformer on tokens, written in operations that can be differentiated many times."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from gnewton.models.network_options import Transformer
from gnewton.models.sequential import mismatch
from gnewton.tasks import Task, TokenClassification

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
