"""Small float64 models for the tests of K-FAC, and the curvature factors written down sample by sample."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DOUBLE = torch.float64


class Chain(nn.Sequential):
    """Layers one after the other, flattened before the first linear one that needs it."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__(*layers)
        self.double()


class Reused(nn.Module):
    """One layer is called twice in a pass."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 3)
        self.double()

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.tanh(self.middle(torch.tanh(self.first(inputs))))
        return self.last(torch.tanh(self.middle(hidden)))


class Tied(nn.Module):
    """Two modules share weight and bias."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.one, self.two, self.last = (
            nn.Linear(a, b) for a, b in [(4, 5), (5, 5), (5, 5), (5, 3)]
        )
        self.two.weight, self.two.bias = self.one.weight, self.one.bias
        self.double()

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.tanh(self.one(torch.tanh(self.first(inputs))))
        return self.last(torch.tanh(self.two(hidden)))


def convolution(*layer: int, size: int = 7, **options: object) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        conv = nn.Conv2d(*layer, **options)  # type: ignore[arg-type]
        features = conv(torch.zeros(1, layer[0], size, size + 1)).numel()
        return Chain(conv, nn.Tanh(), nn.Flatten(), nn.Linear(features, 3))

    return build


def convolution_1d(**options: object) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        conv = nn.Conv1d(2, 3, 3, **options)  # type: ignore[arg-type]
        features = conv(torch.zeros(1, 2, 9)).numel()
        return Chain(conv, nn.Tanh(), nn.Flatten(), nn.Linear(features, 3))

    return build


def positions_per_sample() -> nn.Module:
    """Linear layers on (N, T, features)."""
    return Chain(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2), nn.Flatten(), nn.Linear(6, 3))


def frozen_bias() -> nn.Module:
    model = Chain(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    model[0].bias.requires_grad_(False)  # type: ignore[union-attr]
    return model


def wide() -> nn.Module:
    """So wide that few samples make the products by rows cheaper (kfac/layer_gradient.py)."""
    return Chain(nn.Linear(12, 40), nn.Tanh(), nn.Linear(40, 30, bias=False), nn.Tanh(), nn.Linear(30, 3))


@dataclass(frozen=True)
class Case:
    """A model and the shape of one input."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]

    def make(self, samples: int = 6, seed: int = 0) -> tuple[nn.Module, Tensor]:
        torch.manual_seed(seed)
        return self.build(), torch.randn(samples, *self.shape, dtype=DOUBLE)


IMAGE = (2, 7, 8)
CASES: dict[str, Case] = {
    "linear": Case(lambda: Chain(nn.Linear(4, 3)), (4,)),
    "mlp": Case(lambda: Chain(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), (4,)),
    "no-bias": Case(lambda: Chain(nn.Linear(4, 5, bias=False), nn.Tanh(), nn.Linear(5, 3, bias=False)), (4,)),
    "frozen-bias": Case(frozen_bias, (4,)),
    "in-place": Case(lambda: Chain(nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Linear(5, 3)), (4,)),
    "wide": Case(wide, (12,)),
    "positions": Case(positions_per_sample, (3, 4)),
    "reused": Case(Reused, (4,)),
    "tied": Case(Tied, (4,)),
    "conv": Case(convolution(2, 3, 3), IMAGE),
    "conv-no-bias": Case(convolution(2, 3, 3, bias=False), IMAGE),
    "conv-stride": Case(convolution(2, 3, 3, stride=(2, 1)), IMAGE),
    "conv-padding": Case(convolution(2, 3, 3, padding=(2, 1)), IMAGE),
    "conv-dilation": Case(convolution(2, 3, 2, dilation=(2, 3)), IMAGE),
    "conv-all": Case(convolution(2, 3, (2, 3), stride=(1, 2), padding=(1, 2), dilation=(2, 1)), IMAGE),
    "conv-same": Case(convolution(2, 3, (3, 4), dilation=(1, 2), padding="same"), IMAGE),
    "conv-valid": Case(convolution(2, 3, 3, padding="valid"), IMAGE),
    "conv-reflect": Case(convolution(2, 3, 3, padding=(2, 1), padding_mode="reflect"), IMAGE),
    "conv-circular": Case(convolution(2, 3, 3, padding=1, padding_mode="circular"), IMAGE),
    "conv1d": Case(convolution_1d(stride=2, padding=1), (2, 9)),
    "conv1d-replicate": Case(convolution_1d(dilation=2, padding="same", padding_mode="replicate"), (2, 9)),
}


def fixed(*pieces: Tensor) -> Callable[[Tensor, torch.Generator], Tensor]:
    """A sampler that "draws" these vectors, one piece per call."""
    left = list(pieces)
    return lambda outputs, generator: left.pop(0)


def labels_from(model: nn.Module, inputs: Tensor, seed: int = 3) -> Tensor:
    """δ = softmax(f) − e_y for some labels y: what the true Fisher propagates."""
    outputs = model(inputs).detach()
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(outputs.shape[1], (len(outputs),), generator=generator)
    return outputs.softmax(1) - F.one_hot(labels, outputs.shape[1])


@dataclass
class Dense:
    """The factors of a layer, and the per-sample gradients they stand for.

    Attributes:
        a, g: (1/N) Σ ā āᵀ over samples and positions; (1/(N S)) Σ ĝ ĝᵀ with ĝ those of a sample's own loss.
        gradients: per sample and call of the layer, ∇W with that of the bias as last column.
        positions: S.
    """

    a: Tensor
    g: Tensor
    gradients: list[Tensor]
    positions: int


def dense(model: nn.Module, layers: Sequence[str], inputs: Tensor, deltas: Tensor, bias: bool) -> Dense:
    """One sample at a time; ā of a position is ∂(output there)/∂(weight row): nothing is unfolded.

    Args:
        layers: names of the modules that share the weight in question.
        deltas: ∂ℓ_n/∂f_n per sample.
        bias: whether ā ends in a 1.
    """
    model = copy.deepcopy(model)  # which nobody watches
    a = g = None
    gradients, positions = [], 0
    for x, delta in zip(inputs.split(1), deltas.split(1), strict=True):
        calls: list[tuple[nn.Module, Tensor, Tensor]] = []

        def note(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            calls.append((module, args[0].detach().clone(), output))  # noqa: B023
            return output.clone()  # what follows may write in place

        hooks = [layer.register_forward_hook(note) for layer in map(model.get_submodule, layers)]
        outputs = model(x)
        for hook in hooks:
            hook.remove()
        received = torch.autograd.grad(outputs, [output for _, _, output in calls], delta)
        positions = 0
        for (module, given, _), gradient in zip(calls, received, strict=True):
            rows, values = _rows(module, given, bias), _values(module, gradient)
            positions += len(rows)
            gradients.append(values.T @ rows)
            a = rows.T @ rows if a is None else a + rows.T @ rows
            g = values.T @ values if g is None else g + values.T @ values
    assert a is not None
    assert g is not None
    return Dense(a / len(inputs), g / (len(inputs) * positions), gradients, positions)


def _rows(module: nn.Module, given: Tensor, bias: bool) -> Tensor:
    """(positions, fan-in) of one sample."""
    with torch.enable_grad():
        weight = module.weight.detach().clone().requires_grad_()
        parameters = {"weight": weight, **({"bias": module.bias.detach()} if module.bias is not None else {})}
        output = torch.func.functional_call(module, parameters, (given,))
        first = _values(module, output)[:, 0]
        rows = [torch.autograd.grad(value, weight, retain_graph=True)[0][0].flatten() for value in first]
    stack = torch.stack(rows)
    return torch.cat([stack, torch.ones(len(stack), 1, dtype=DOUBLE)], 1) if bias else stack


def _values(module: nn.Module, output: Tensor) -> Tensor:
    """(positions, features) of one sample's output."""
    if isinstance(module, nn.Linear):
        return output.reshape(-1, output.shape[-1])
    return output[0].flatten(1).T


def pi(a: Tensor, g: Tensor) -> float:
    return math.sqrt((float(a.trace()) / len(a)) / (float(g.trace()) / len(g)))


def joined(weight: Tensor, bias: Tensor | None) -> Tensor:
    """∇W as a matrix, the bias last."""
    flat = weight.flatten(1)
    return flat if bias is None else torch.cat([flat, bias[:, None]], 1)
