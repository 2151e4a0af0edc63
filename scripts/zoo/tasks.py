"""The networks of the zoo: each a model, a loss, data and a batch size, as users have them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

LossFunction = Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class Task:
    """A training problem.

    Attributes:
        model: the network, as initialised.
        loss_fn: maps (outputs, targets) to the mean loss.
        inputs, targets: all samples.
        batch: samples per step; all of them for full-batch training.
    """

    model: nn.Module
    loss_fn: LossFunction
    inputs: Tensor
    targets: Tensor
    batch: int


Builder = Callable[[], Task]
TASKS: dict[str, Builder] = {}


def task(builder: Builder) -> Builder:
    """Enter a builder by its name. It draws data and weights from torch's random stream."""
    TASKS[builder.__name__] = builder
    return builder


def _digits(*, flat: bool) -> tuple[Tensor, Tensor]:
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    return images.flatten(1) if flat else images, torch.tensor(digits.target)


def _regression(samples: int = 1000) -> tuple[Tensor, Tensor]:
    features = torch.randn(samples, 20)
    return features, torch.tanh(features @ torch.randn(20, 3)) + 0.1 * torch.randn(samples, 3)


def _text(samples: int = 1024, length: int = 12, vocabulary: int = 50) -> Tensor:
    """Sequences of x ← 3x + 1 modulo the vocabulary."""
    text = [torch.randint(0, vocabulary, (samples, 1))]
    for _ in range(length):
        text.append((text[-1] * 3 + 1) % vocabulary)
    return torch.cat(text, 1)


def token_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy per token."""
    return F.cross_entropy(outputs.flatten(0, 1), targets.flatten())


def _dense(widths: list[int], activation: Callable[[], nn.Module]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(widths[:-1]):
        layers += [nn.Linear(a, b), activation()]
    return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1]))


class Attention(nn.Module):
    """One layer of causal self-attention without residual."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.qkv, self.head = nn.Embedding(50, 16), nn.Linear(16, 48), nn.Linear(16, 50)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, T, 50) of tokens (N, T)."""
        q, k, v = self.qkv(self.embed(x)).view(*x.shape, 3, 2, 8).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.head(mixed.transpose(1, 2).reshape(*x.shape, 16))


@task
def attention() -> Task:
    """The key bias has no effect."""
    text = _text()
    return Task(Attention(), token_loss, text[:, :-1], text[:, 1:], 64)


class Transformer(nn.Module):
    """torch's encoder layers, as a language model."""

    def __init__(self, *, norm_first: bool, tied: bool) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(50, 32), nn.Parameter(0.02 * torch.randn(12, 32))
        layer = nn.TransformerEncoderLayer(
            32, 4, 64, dropout=0.0, activation="gelu", batch_first=True, norm_first=norm_first
        )
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 50, bias=not tied)
        if tied:
            nn.init.normal_(self.embed.weight, std=0.1)
            self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, T, 50) of tokens (N, T)."""
        mask = torch.full((x.shape[1], x.shape[1]), float("-inf")).triu(1)
        return self.head(self.encoder(self.embed(x) + self.place, mask=mask))


@task
def transformer_post_norm() -> Task:
    """Layer normalisation after the residual."""
    text = _text()
    return Task(Transformer(norm_first=False, tied=False), token_loss, text[:, :-1], text[:, 1:], 64)


@task
def transformer_tied() -> Task:
    """Layer normalisation first; the head shares the weights of the embedding."""
    text = _text()
    return Task(Transformer(norm_first=True, tied=True), token_loss, text[:, :-1], text[:, 1:], 64)


@task
def regression_whole_set() -> Task:
    """Full batch: no noise at all."""
    x, y = _regression()
    return Task(_dense([20, 64, 3], nn.Tanh), F.mse_loss, x, y, len(x))


@task
def regression_l1() -> Task:
    """A loss without curvature in the outputs."""
    x, y = _regression()
    return Task(_dense([20, 64, 64, 3], nn.ReLU), F.l1_loss, x, y, 64)


@task
def regression_unscaled() -> Task:
    """Features of scale 30, targets of scale 100."""
    x, y = _regression()
    return Task(_dense([20, 64, 3], nn.ReLU), F.mse_loss, 30 * x, 100 * y, 64)


@task
def regression_linear() -> Task:
    """Least squares, ill-conditioned."""
    x = torch.randn(500, 30) * torch.logspace(0, -2, 30)
    return Task(nn.Linear(30, 1), F.mse_loss, x, x @ torch.randn(30, 1) + 0.01 * torch.randn(500, 1), 50)


@task
def gaussian_likelihood() -> Task:
    """Mean and log-variance of each target."""
    x, y = _regression()

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        mean, log_variance = outputs.chunk(2, -1)
        return (log_variance + (targets - mean) ** 2 * torch.exp(-log_variance)).mean() + 3

    return Task(_dense([20, 64, 6], nn.Tanh), loss, x, y, 64)


@task
def poisson() -> Task:
    """Counts, with an exponential link."""
    x = torch.randn(1000, 20)
    rate = torch.exp((x @ torch.randn(20, 1) * 0.3).clamp(max=3))
    return Task(
        _dense([20, 32, 1], nn.ReLU),
        lambda o, t: F.poisson_nll_loss(o, t, full=True) + 1,
        x,
        torch.poisson(rate),
        64,
    )


@task
def digits_tanh() -> Task:
    """An ordinary MLP."""
    x, y = _digits(flat=True)
    return Task(_dense([64, 64, 32, 10], nn.Tanh), F.cross_entropy, x, y, 64)


@task
def digits_small_batch() -> Task:
    """Eight samples a step."""
    x, y = _digits(flat=True)
    return Task(_dense([64, 64, 10], nn.ReLU), F.cross_entropy, x, y, 8)


@task
def digits_dropout() -> Task:
    """Noise in the network too."""
    x, y = _digits(flat=True)
    model = nn.Sequential(
        nn.Linear(64, 128),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(128, 64),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Linear(64, 10),
    )
    return Task(model, F.cross_entropy, x, y, 64)


@task
def deep_relu() -> Task:
    """Nine layers of torch's initialisation, in which signals shrink."""
    x, y = _digits(flat=True)
    return Task(_dense([64] + [32] * 8 + [10], nn.ReLU), F.cross_entropy, x, y, 64)


@task
def deep_layer_norm() -> Task:
    """Six layers with a normalisation each."""
    x, y = _digits(flat=True)
    layers = [m for _ in range(6) for m in (nn.Linear(64, 64), nn.LayerNorm(64), nn.GELU())]
    return Task(nn.Sequential(*layers, nn.Linear(64, 10)), F.cross_entropy, x, y, 64)


@task
def large_weights() -> Task:
    """Every weight ten times too large."""
    x, y = _digits(flat=True)
    model = _dense([64, 64, 64, 10], nn.Tanh)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(10)
    return Task(model, F.cross_entropy, x, y, 64)


@task
def small_weights() -> Task:
    """Every weight ten times too small."""
    x, y = _digits(flat=True)
    model = _dense([64, 64, 64, 10], nn.ReLU)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0.1)
    return Task(model, F.cross_entropy, x, y, 64)


@task
def conv_batch_norm() -> Task:
    """Biases before batch normalisation have no effect."""
    x, y = _digits(flat=False)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip
    return Task(model, F.cross_entropy, x, y, 64)


@task
def conv_plain() -> Task:
    """A LeNet of sigmoids and pooling."""
    x, y = _digits(flat=False)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.Tanh(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 3), nn.Tanh(),
        nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10),
    )  # fmt: skip
    return Task(model, F.cross_entropy, x, y, 64)


class Residual(nn.Module):
    """x + f(x), pre-activated, with group normalisation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.GroupNorm(2, channels), nn.SiLU(), nn.Conv2d(channels, channels, 3, padding=1),
            nn.GroupNorm(2, channels), nn.SiLU(), nn.Conv2d(channels, channels, 3, padding=1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same."""
        return x + self.body(x)


@task
def residual_group_norm() -> Task:
    """A small residual network."""
    x, y = _digits(flat=False)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        Residual(8),
        Residual(8),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 10),
    )
    return Task(model, F.cross_entropy, x, y, 64)


@task
def autoencoder() -> Task:
    """Binary cross-entropy on pixels."""
    x, _ = _digits(flat=True)
    model = _dense([64, 32, 8, 32, 64], nn.ReLU)
    return Task(model, F.binary_cross_entropy_with_logits, x, x, 64)


@task
def imbalanced() -> Task:
    """One positive in twenty, sigmoid output."""
    x = torch.randn(1500, 20)
    score = x @ torch.randn(20, 1)
    y = (score > score.quantile(0.95)).float()
    return Task(_dense([20, 32, 1], nn.ReLU), F.binary_cross_entropy_with_logits, x, y, 64)


class Recurrent(nn.Module):
    """The last output of an LSTM, classified."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(8, 24, batch_first=True), nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, 10) of sequences (N, 8, 8)."""
        return self.head(self.lstm(x)[0][:, -1])


@task
def lstm() -> Task:
    """Digits, row by row."""
    x, y = _digits(flat=False)
    return Task(Recurrent(), F.cross_entropy, x[:, 0], y, 64)


class Factors(nn.Module):
    """Matrix factorisation: ⟨a_i, b_j⟩."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.columns = nn.Embedding(60, 6), nn.Embedding(40, 6)

    def forward(self, pairs: Tensor) -> Tensor:
        """Scores (N,) of pairs (N, 2)."""
        return (self.rows(pairs[:, 0]) * self.columns(pairs[:, 1])).sum(-1)


@task
def factorisation() -> Task:
    """Two embeddings, most rows of which a batch does not use."""
    pairs = torch.stack([torch.randint(0, 60, (2000,)), torch.randint(0, 40, (2000,))], 1)
    a, b = torch.randn(60, 3), torch.randn(40, 3)
    return Task(Factors(), F.mse_loss, pairs, (a[pairs[:, 0]] * b[pairs[:, 1]]).sum(-1), 100)


@task
def weight_normalised() -> Task:
    """Weights by direction and length."""
    x, y = _digits(flat=True)
    norm = nn.utils.parametrizations.weight_norm
    model = nn.Sequential(
        norm(nn.Linear(64, 64)), nn.ReLU(), norm(nn.Linear(64, 32)), nn.ReLU(), nn.Linear(32, 10)
    )
    return Task(model, F.cross_entropy, x, y, 64)
