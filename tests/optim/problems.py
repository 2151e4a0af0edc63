"""Small problems in float64 for the tests of the optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gnewton import GroupedNewton
from gnewton.optim.controllers import Constant


class Quadratic(nn.Module):
    """½ xᵀAx − bᵀx over scalar parameters x_0 … x_(n−1), without data."""

    def __init__(self, size: int, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        root = torch.randn(size, size, generator=generator, dtype=torch.float64)
        self.register_buffer("a", root @ root.T + torch.eye(size, dtype=torch.float64))
        self.register_buffer("b", torch.randn(size, generator=generator, dtype=torch.float64))
        self.x = nn.ParameterList(
            [nn.Parameter(torch.randn((), generator=generator, dtype=torch.float64)) for _ in range(size)]
        )

    def forward(self, inputs: Tensor) -> Tensor:
        x = torch.stack(list(self.x))
        return 0.5 * x @ self.a @ x - self.b @ x

    def solution(self) -> Tensor:
        return torch.linalg.solve(self.a, self.b)


def value(outputs: Tensor, targets: Tensor) -> Tensor:
    """The loss of a model that returns its own value."""
    return outputs


NOTHING = (torch.empty(0), torch.empty(0))


def tanh_net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def classification(count: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 4, generator=generator, dtype=torch.float64)
    teacher = torch.randn(4, 3, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    return inputs, (inputs @ teacher).argmax(1)


def take_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Any,
    loss_fn: Callable[..., Tensor] = F.cross_entropy,
    poison: float | None = None,
) -> float:
    """One training step on a batch, which GroupedNewton takes for its summary as well; the loss before it.

    ``poison`` replaces one entry of the gradient.
    """
    optimizer.zero_grad()
    loss = loss_fn(model(batch[0]), batch[1])
    loss.backward()
    if poison is not None:
        next(model.parameters()).grad[0, 0] = poison  # type: ignore[index]
    optimizer.step(**({"batch": batch} if isinstance(optimizer, GroupedNewton) else {}))
    return float(loss.detach())


def advance(model: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> Tensor:
    """The parameters after the steps ``first`` to ``last`` - 1, each of which has its own batch."""
    for step in range(first, last):
        take_step(model, optimizer, classification(20, seed=step))
    return flat(model)


def flat(model: nn.Module) -> Tensor:
    """A copy of all parameters as one vector."""
    return torch.cat([p.detach().flatten() for p in model.parameters()])


class Stream:
    """Endless curvature batches whose position can be saved, as those of a data set."""

    def __init__(self, count: int = 20) -> None:
        self.position = 0
        self.count = count

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> tuple[Tensor, Tensor]:
        self.position += 1
        return classification(self.count, seed=1000 + self.position)


EXACT: dict[str, Any] = {
    "along": "step",
    "cap": None,
    "safeguard": False,
    "shrinkage": 0.0,
    "controller": Constant(),
}
"""Options of GroupedNewton without what keeps a training safe: the steps are those of the formulas alone."""
