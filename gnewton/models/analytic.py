"""Problems given by a formula: Rosenbrock's functions, and a network for Poisson's equation.

That network returns the Laplacian of the function that it represents. Every layer takes the value, the
gradient and the Laplacian of its units as functions of the point x: for z = φ(y), ∂z = φ′ ∂y and
Δz = φ′ Δy + φ″ |∂y|² (the forward Laplacian; Dangel et al. 2024 take K-FAC over it). So the loss is a plain
function of the parameters, with derivatives of any order.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from gnewton.models.feedforward import mismatch
from gnewton.models.network_options import Pinn, Rosenbrock
from gnewton.models.widths import expand_widths
from gnewton.tasks import Minimisation, Regression, Task


def pinn(options: Pinn, task: Task) -> nn.Module:
    """The network for points of the task's dimension.

    Raises:
        InputError: if the task is no regression of one number on vectors.
    """
    if not isinstance(task, Regression) or task.outputs != 1 or len(task.input_shape) != 1:
        raise mismatch(options.name, "points (d,) with one number each, as in data=poisson", task)
    return PoissonNetwork([*task.input_shape, *expand_widths(options.widths), 1], options.activation)


class JetLayer(nn.Module):
    """A linear layer on jets (N, 2 + d, inputs): value, gradient and Laplacian of each unit."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs, bias=False)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, jet: Tensor) -> Tensor:
        """The bias is a constant: it moves values alone."""
        moved = self.linear(jet)
        return torch.cat([moved[:, :1] + self.bias, moved[:, 1:]], 1)


class PoissonNetwork(nn.Module):
    """Points x (N, d) of the unit cube -> −Δu(x), (N, 1), with u = 0 on the boundary.

    Args:
        widths: d, the units of the hidden layers, 1.
        activation: "tanh" or "sin".
    """

    def __init__(self, widths: list[int], activation: str) -> None:
        super().__init__()
        self.layers = nn.ModuleList(JetLayer(inputs, outputs) for inputs, outputs in pairwise(widths))
        self.activation = activation

    def forward(self, points: Tensor) -> Tensor:
        """−Δ(B N) = −(B ΔN + 2 ⟨∇B, ∇N⟩ + N ΔB) with B = Π_i x_i (1 − x_i)."""
        jet = self._jet(points)
        value, slopes, laplacian = jet[:, 0], jet[:, 1:-1, 0], jet[:, -1]
        sides = points * (1 - points)
        others = torch.stack(
            [torch.cat([sides[:, :i], sides[:, i + 1 :]], 1).prod(1) for i in range(points.shape[1])],
            1,
        )
        bump = sides.prod(1, keepdim=True)
        inner = (others * (1 - 2 * points) * slopes).sum(1, keepdim=True)
        return 2 * others.sum(1, keepdim=True) * value - bump * laplacian - 2 * inner

    def solution(self, points: Tensor) -> Tensor:
        """u(x), (N, 1)."""
        return (points * (1 - points)).prod(1, keepdim=True) * self._jet(points)[:, 0]

    def _jet(self, points: Tensor) -> Tensor:
        """Value, gradient and Laplacian of N(x), (N, 2 + d, 1)."""
        samples, size = points.shape
        slopes = torch.eye(size, dtype=points.dtype, device=points.device).expand(samples, size, size)
        jet = torch.cat([points[:, None], slopes, torch.zeros_like(points)[:, None]], 1)
        for number, layer in enumerate(self.layers):
            jet = layer(jet if number == 0 else self._activated(jet))
        return jet

    def _activated(self, jet: Tensor) -> Tensor:
        value, slopes, laplacian = jet[:, :1], jet[:, 1:-1], jet[:, -1:]
        if self.activation == "tanh":
            out = torch.tanh(value)
            first = 1 - out * out
            second = -2 * out * first
        else:
            out, first = torch.sin(value), torch.cos(value)
            second = -out
        curved = first * laplacian + second * (slopes * slopes).sum(1, keepdim=True)
        return torch.cat([out, first * slopes, curved], 1)


class RosenbrockFunction(nn.Module, ABC):
    """Σ (x_odd − a)² + b (x_odd² − x_even)² over consecutive pairs of coordinates."""

    def __init__(self, a: float, b: float) -> None:
        super().__init__()
        self.a = a
        self.b = b

    @abstractmethod
    def coordinates(self) -> tuple[Tensor, Tensor]:
        """(x_1, x_3 …) and (x_2, x_4 …), each of shape (n/2,)."""

    def forward(self, inputs: Tensor | None = None) -> Tensor:
        """The value, a scalar; ``inputs`` are ignored."""
        odds, evens = self.coordinates()
        return ((odds - self.a).square() + self.b * (odds.square() - evens).square()).sum()


class EvensOdds(RosenbrockFunction):
    """Two parameters, ``odds`` and ``evens``, of shape (n/2,)."""

    def __init__(self, start: Sequence[float], a: float, b: float) -> None:
        super().__init__(a, b)
        self.odds = nn.Parameter(torch.tensor(start[0::2], dtype=torch.get_default_dtype()))
        self.evens = nn.Parameter(torch.tensor(start[1::2], dtype=torch.get_default_dtype()))

    def coordinates(self) -> tuple[Tensor, Tensor]:
        """The two parameters."""
        return self.odds, self.evens


class Pairs(RosenbrockFunction):
    """n/2 parameters ``pairs.0``, ``pairs.1`` … of shape (2,)."""

    def __init__(self, start: Sequence[float], a: float, b: float) -> None:
        super().__init__(a, b)
        pairs = torch.tensor(start, dtype=torch.get_default_dtype()).reshape(-1, 2)
        self.pairs = nn.ParameterList(nn.Parameter(pair.clone()) for pair in pairs)

    def coordinates(self) -> tuple[Tensor, Tensor]:
        """First and second entries of the pairs."""
        odds, evens = torch.stack(list(self.pairs), dim=1).unbind(0)
        return odds, evens


def rosenbrock(options: Rosenbrock, task: Task) -> RosenbrockFunction:
    """The function at its start.

    Raises:
        InputError: if the data have inputs or targets.
    """
    if not isinstance(task, Minimisation):
        raise mismatch(options.name, "no data (task: minimisation)", task)
    start = options.start if len(options.start) == options.size else options.start * (options.size // 2)
    return (Pairs if options.form == "pairs" else EvensOdds)(start, options.a, options.b)
