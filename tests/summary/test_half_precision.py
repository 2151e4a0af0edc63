"""Gauss–Newton matrices in half precision and in mixed precision, against float64."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gnewton.partition import Partition
from gnewton.summary.result import Rounding
from gnewton.summary.tangent.accumulator import Accumulator
from gnewton.summary.tangent.checks import disagreement
from gnewton.summary.tangent.passes import Passes

from .operations import Net
from .test_zoo import difference
from .ways import by

HALVES = [torch.bfloat16, torch.float16]


def coupled(features):
    return nn.Sequential(
        nn.Linear(8, features), nn.BatchNorm1d(features), nn.Tanh(), nn.Linear(features, 8), nn.Tanh(),
        nn.Linear(8, 3),
    )  # fmt: skip


def independent(features):
    layers = [[nn.Linear(features, features), nn.LayerNorm(features), nn.ReLU()] for _ in range(6)]
    return nn.Sequential(
        nn.Linear(8, features), *[m for block in layers for m in block], nn.Linear(features, 3)
    )


def summary(model, inputs, targets, direction, way, loss_fn=F.cross_entropy, sliced=False):
    """The Gauss–Newton summary, and the way it was computed."""
    partition = (Partition.per_channel if sliced else Partition.per_tensor)(model)
    direction = {name: direction[name].to(p.dtype) for name, p in model.named_parameters()}
    return by(way, (model, loss_fn, inputs, targets, partition, direction))


def data(model, samples, dtype):
    """Inputs and direction as numbers of half precision, so that float64 computes with the same ones."""
    torch.manual_seed(0)
    inputs = torch.randn(samples, 8).to(dtype)
    direction = {name: torch.randn(p.shape).to(dtype) for name, p in model.named_parameters()}
    return inputs, torch.randint(3, (samples,)), direction


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("samples", [4, 16, 100])
def test_coupled_samples_are_noticed(dtype, samples):
    torch.manual_seed(1)
    half = coupled(16).to(dtype)
    exact = copy.deepcopy(half).double()
    inputs, targets, direction = data(half, samples, dtype)
    true, _ = summary(exact, inputs.double(), targets, direction, "tangents")
    result, way = summary(half, inputs, targets, direction, "rows")
    assert way == "tangents"
    assert difference(result.hessian, true.hessian) < 0.1


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("samples", [4, 100])
def test_independent_samples_keep_their_rows(dtype, samples):
    torch.manual_seed(1)
    half = independent(32).to(dtype)
    exact = copy.deepcopy(half).double()
    inputs, targets, direction = data(half, samples, dtype)
    true, _ = summary(exact, inputs.double(), targets, direction, "rows")
    result, way = summary(half, inputs, targets, direction, "rows")
    assert way == "rows"
    assert difference(result.hessian, true.hessian) < 0.1


class Mixed(nn.Module):
    """A body in one precision and a head in another, with outputs in both."""

    def __init__(self, both):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh())
        self.head = nn.Linear(6, 3)
        self.both = both

    def forward(self, x):
        h = self.body(x)
        z = self.head(h.to(self.head.weight.dtype))
        return (h, z) if self.both else z


def both_losses(outputs, targets):
    return outputs[0].square().mean().to(outputs[1].dtype) + F.cross_entropy(outputs[1], targets)


PRECISIONS = [(torch.bfloat16, torch.float32, 0.05), (torch.float32, torch.float64, 1e-5)]


@pytest.mark.parametrize(("low", "high", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("sliced", [False, True])
def test_rows_of_mixed_precision(low, high, tolerance, both, sliced):
    torch.manual_seed(2)
    mixed = Mixed(both)
    mixed.body.to(low)
    mixed.head.to(low).to(high)
    exact = copy.deepcopy(mixed).double()
    inputs, targets, direction = data(mixed, 6, low)
    loss_fn = both_losses if both else F.cross_entropy
    result, way = summary(mixed, inputs, targets, direction, "rows", loss_fn, sliced)
    true, _ = summary(exact, inputs.double(), targets, direction, "rows", loss_fn, sliced)
    assert way == "rows"
    assert difference(result.gradient, true.gradient) < tolerance
    assert difference(result.hessian, true.hessian) < tolerance


def attention(m, x):
    scores = torch.softmax(m.a(x), 1, dtype=m.high)
    return m.o((scores * m.b(x)).to(x.dtype) + torch.softmax(m.b(x), 1))


def joined(m, x):
    h = torch.cat([torch.tanh(m.a(x)), torch.tanh(m.b(x)).to(m.high)], 1)
    return m.o(torch.softmax(h, 1)[:, 2:8].to(x.dtype))


def product(m, x):
    gates = torch.linspace(0.5, 2, 6, dtype=m.high)
    return m.o((gates * torch.tanh(m.a(x)) - m.b(x)).to(x.dtype))


@pytest.mark.parametrize(("low", "high", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("forward", [attention, joined, product])
def test_adjoints_have_the_type_of_their_value(forward, low, high, tolerance):
    torch.manual_seed(3)
    members = {"a": nn.Linear(7, 6), "b": nn.Linear(7, 6), "o": nn.Linear(6, 3), "first": nn.Linear(8, 7)}
    half = Net(lambda m, x: forward(m, torch.tanh(m.first(x))), **members).to(low)
    exact = copy.deepcopy(half).double()
    half.high, exact.high = high, torch.float64
    inputs, targets, direction = data(half, 6, low)
    result, way = summary(half, inputs, targets, direction, "rows")
    true, _ = summary(exact, inputs.double(), targets, direction, "rows")
    assert way == "rows"
    assert difference(result.gradient, true.gradient) < tolerance
    assert difference(result.hessian, true.hessian) < tolerance


def deep(features):
    layers = [nn.Linear(8, features), nn.BatchNorm1d(features), nn.ReLU()]
    for _ in range(2):
        layers += [nn.Linear(features, features), nn.BatchNorm1d(features), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(features, 3))


@pytest.mark.parametrize("seed", range(2))
def test_gradients_that_are_noise_are_no_wrong_rule(seed):
    """The biases before the normalisations have no gradient."""
    torch.manual_seed(seed)
    half = deep(16).to(torch.bfloat16)
    inputs, targets, direction = data(half, 8, torch.bfloat16)
    result, way = summary(half, inputs, targets, direction, "tangents")
    assert way == "tangents"
    biases = [result.gradient[list(direction).index(f"{k}.bias")].abs() for k in (0, 3, 6)]
    assert max(biases) < 0.05 * result.gradient.abs().max()


@pytest.mark.parametrize(("dtype", "noticed"), [(torch.bfloat16, [1, 2]), (torch.float64, [0, 1, 2])])
def test_larger_gradients_are_compared(dtype, noticed):
    slope = torch.tensor([0.004, 0.02, 1.0], dtype=torch.float64)
    sums = Accumulator(
        3, slope.device, diagonal=True, third=False, rounding=Rounding.of([dtype], slope.device)
    )
    sums.gradient += 1.2 * slope - 0.0005
    bad = disagreement(Passes(sums, slope.new_ones(()), slope), dtype)
    assert bad.nonzero().flatten().tolist() == noticed
