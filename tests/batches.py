"""Models called with more than one tensor, each with a batch and how it is used."""

from __future__ import annotations

from collections import OrderedDict, UserDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass
class Case:
    """A model with its batch; ``forward`` where the usual call does not fit."""

    model: nn.Module
    loss_fn: Callable[[Any, Any], Tensor]
    batch: Any
    forward: Callable[[nn.Module, Any], Any] | None = None

    @property
    def pair(self) -> tuple[Any, Any]:
        """The batch as a summary takes it."""
        return (self.batch, None) if self.forward is not None else tuple(self.batch)  # type: ignore[return-value]


class TwoInputs(nn.Module):
    """Two linear layers, one for each input, under a third."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.top = nn.Linear(3, 5), nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, a: Tensor, b: Tensor, *, scale: float = 1.0, extra: Tensor | None = None) -> Tensor:
        hidden = torch.tanh(self.left(a) * scale + self.right(b))
        return self.top(hidden if extra is None else hidden + extra)


class Attention(nn.Module):
    """One layer of attention with a mask of what is there, and a mean over it."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out, self.top = nn.Linear(4, 12), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        scores = q @ k.transpose(1, 2) / 2
        weights = scores.masked_fill(~mask[:, None, :], -1e4).softmax(-1)
        hidden = torch.tanh(self.out(weights @ v)) * mask[..., None]
        return self.top(hidden.sum(1) / mask.sum(1, keepdim=True))


class Output(OrderedDict[str, Any]):
    """Named outputs, read as attributes or as a dictionary."""

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise AttributeError(name)


class Tagger(nn.Module):
    """A small model in the manner of Hugging Face: keyword arguments in, loss and logits out."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.hidden, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None
    ) -> Output:
        hidden = torch.tanh(self.hidden(self.embedding(input_ids)))
        if attention_mask is not None:
            hidden = hidden * attention_mask[..., None]
        logits = self.head(hidden.mean(1))
        loss = F.cross_entropy(logits, labels) if labels is not None else None
        return Output(loss=loss, logits=logits)


class Summed(nn.Module):
    """Takes a list of tensors as one argument."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, parts: list[Tensor]) -> dict[str, Any]:
        return {"logits": torch.tanh(self.layer(sum(parts[1:], parts[0]))), "count": len(parts)}


class Graph(nn.Module):
    """One round of messages along edges; takes a record of nodes and edges."""

    def __init__(self) -> None:
        super().__init__()
        self.own, self.message, self.top = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        sums = torch.zeros(len(x), 6, dtype=x.dtype).index_add(0, edges[1], self.message(x)[edges[0]])
        return self.top(torch.tanh(self.own(x) + sums))


@dataclass(frozen=True)
class Record:
    """A batch with names."""

    x: Tensor
    edges: Tensor
    y: Tensor
    note: str | None = None


class Pair(NamedTuple):
    """Two inputs with names."""

    a: Tensor
    b: Tensor


def _numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _labels(count: int, classes: int = 3, seed: int = 1) -> Tensor:
    return torch.randint(0, classes, (count,), generator=torch.Generator().manual_seed(seed))


def _tokens() -> dict[str, Any]:
    ids = torch.randint(0, 11, (12, 5), generator=torch.Generator().manual_seed(3))
    mask = torch.arange(5)[None, :] < 1 + torch.arange(12)[:, None] % 5
    return {"input_ids": ids, "attention_mask": mask.double(), "labels": _labels(12)}


def _edges() -> Tensor:
    return torch.randint(0, 10, (2, 25), generator=torch.Generator().manual_seed(4))


def _of_logits(outputs: Any, targets: Any) -> Tensor:
    return F.cross_entropy(outputs["logits"], targets)


def _own_loss(outputs: Any, batch: Any) -> Tensor:
    loss: Tensor = outputs.loss
    return loss


def make(name: str) -> Case:
    """A fresh case in float64."""
    torch.manual_seed(0)
    a, b, y = _numbers(12, 3), _numbers(12, 4, seed=5), _labels(12)
    mask = torch.arange(5)[None, :] < 1 + torch.arange(12)[:, None] % 5
    tokens = _tokens()
    graph = Record(_numbers(10, 4), _edges(), _labels(10), note="ring")
    cases: dict[str, Callable[[], Case]] = {
        "tuple": lambda: Case(TwoInputs(), F.cross_entropy, ((a, b), y)),
        "list": lambda: Case(TwoInputs(), F.cross_entropy, [[a, b], y]),
        "named tuple": lambda: Case(TwoInputs(), F.cross_entropy, (Pair(a, b), y)),
        "dict": lambda: Case(TwoInputs(), F.cross_entropy, ({"a": a, "b": b, "scale": 0.5}, y)),
        "none": lambda: Case(TwoInputs(), F.cross_entropy, ({"a": a, "b": b, "extra": None}, y)),
        "shared": lambda: Case(
            TwoInputs(), F.cross_entropy, ({"a": a, "b": b, "extra": _numbers(5, seed=9)}, y)
        ),
        "mask": lambda: Case(Attention(), F.cross_entropy, ((_numbers(12, 5, 4), mask), y)),
        "outputs": lambda: Case(
            Tagger(), _of_logits, ({key: tokens[key] for key in ("input_ids", "attention_mask")}, y)
        ),
        "own loss": lambda: Case(Tagger(), _own_loss, tokens, lambda model, batch: model(**batch)),
        "user dict": lambda: Case(Tagger(), _own_loss, UserDict(tokens), lambda model, batch: model(**batch)),
        "no targets": lambda: Case(Tagger(), _own_loss, (tokens, None)),
        "one list": lambda: Case(
            Summed(),
            lambda outputs, batch: F.cross_entropy(outputs["logits"], batch[1]) * outputs["count"],
            ([a, a.sin(), a.cos()], y),
            lambda model, batch: model(batch[0]),
        ),
        "edges": lambda: Case(Graph(), F.cross_entropy, ((graph.x, graph.edges), graph.y)),
        "dataclass": lambda: Case(
            Graph(),
            lambda outputs, batch: F.cross_entropy(outputs, batch.y),
            graph,
            lambda model, batch: model(batch.x, batch.edges),
        ),
        "penalty": lambda: _with_penalty(a, b, y),
    }
    case = cases[name]()
    case.model.double()
    return case


NAMES = (
    "tuple",
    "list",
    "named tuple",
    "dict",
    "none",
    "shared",
    "mask",
    "outputs",
    "own loss",
    "user dict",
    "no targets",
    "one list",
    "edges",
    "dataclass",
    "penalty",
)


def _with_penalty(a: Tensor, b: Tensor, y: Tensor) -> Case:
    """The loss reads the weights of the model."""
    model = TwoInputs()

    def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets) + 0.1 * sum(p.pow(4).sum() for p in model.parameters())

    return Case(model, loss_fn, ((a, b), y))


def training_loss(case: Case) -> Tensor:
    """What a training loop calls ``backward`` on."""
    if case.forward is not None:
        return case.loss_fn(case.forward(case.model, case.batch), case.batch)
    inputs, targets = case.batch
    if isinstance(inputs, dict):
        return case.loss_fn(case.model(**inputs), targets)
    return case.loss_fn(case.model(*inputs), targets)
