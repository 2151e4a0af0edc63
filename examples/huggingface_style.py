"""GroupedNewton for a model in the style of Hugging Face: batches by name, and a model that returns its loss.

Run it with ``python examples/huggingface_style.py``. Nothing is downloaded: the classes below have the shape
of those in ``transformers`` (a configuration, ``forward(pixel_values, labels)``, an output with ``loss`` and
``logits``), and the same two arguments, ``forward`` and ``loss_fn``, fit a model from there.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

from gnewton import GroupedNewton, Partition


@dataclass
class Config:
    """Sizes: an image of 8×8 pixels is read as 8 tokens, its rows."""

    hidden: int = 32
    heads: int = 4
    layers: int = 2


@dataclass
class Output:
    """What a model of this style returns; the loss is there if labels were given."""

    logits: Tensor
    loss: Tensor | None = None


class Layer(nn.Module):
    """Self-attention and a perceptron, each behind a layer normalisation."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.heads = config.heads
        self.attention_norm, self.output_norm = nn.LayerNorm(config.hidden), nn.LayerNorm(config.hidden)
        self.qkv, self.projection = (nn.Linear(config.hidden, n * config.hidden) for n in (3, 1))
        self.mlp = nn.Sequential(nn.Linear(config.hidden, 64), nn.GELU(), nn.Linear(64, config.hidden))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, hidden) to the same shape."""
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.qkv(self.attention_norm(x)).chunk(3, dim=-1)
        )
        x = x + self.projection(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2))
        return x + self.mlp(self.output_norm(x))


class DigitTransformer(nn.Module):
    """A small transformer that classifies images."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.embedding = nn.Linear(8, config.hidden)
        self.position = nn.Parameter(0.02 * torch.randn(8, config.hidden))
        self.layers = nn.Sequential(*(Layer(config) for _ in range(config.layers)))
        self.classifier = nn.Linear(config.hidden, 10)

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> Output:
        """Logits of shape (batch, 10), and the mean loss over the batch where there are labels."""
        logits = self.classifier(self.layers(self.embedding(pixel_values) + self.position).mean(1))
        return Output(logits, None if labels is None else cross_entropy(logits, labels))


def main(steps: int = 200) -> float:
    """Train, print the rates, and return the accuracy on held-out images."""
    torch.manual_seed(0)
    data = load_digits()
    order = torch.randperm(len(data.target))
    images = torch.tensor(data.images / 16.0, dtype=torch.float32)[order]
    labels = torch.tensor(data.target)[order]
    model = DigitTransformer(Config())

    # A group may be any set of parameters: here the embedding, each layer, and the classifier. A regular
    # expression stands for all parameters in whose names it is found.
    partition = Partition.patterns(
        model, ["^embedding|^position", r"^layers\.0", r"^layers\.1", "^classifier"], None
    )
    optimizer = GroupedNewton(
        model,
        lambda outputs, batch: outputs.loss,  # the model has computed it
        partition,
        forward=lambda model, batch: model(**batch),
        total_steps=steps,
    )
    for step in range(steps):
        chosen = torch.randint(0, 1500, (64,))
        batch = {"pixel_values": images[chosen], "labels": labels[chosen]}
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        optimizer.step(batch=batch)
        if step % 50 == 0:
            print(
                f"step {step:3}: loss {loss.item():.3f}, rates",
                *(f"{r:.4f}" for r in optimizer.rates.values()),
            )
    with torch.no_grad():
        right = model(images[1500:]).logits.argmax(1) == labels[1500:]
    accuracy = right.float().mean().item()
    print(f"loss {loss.item():.3f}, accuracy {accuracy:.1%} on held-out images")
    return accuracy


if __name__ == "__main__":
    main()
