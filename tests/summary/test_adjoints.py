"""The backward pass of stacked adjoints: memory that two steps share, precisions, transposed convolutions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gnewton.partition import Partition
from gnewton.summary import summarize

from .operations import Net
from .test_zoo import difference
from .ways import by


def by_rows(model, inputs, targets, loss_fn=F.mse_loss):
    """The Gauss–Newton summary by rows, and the arguments of the oracle."""
    generator = torch.Generator().manual_seed(1)
    direction = {
        name: torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)
        for name, p in model.named_parameters()
    }
    arguments = (model, loss_fn, inputs, targets, Partition.per_tensor(model), direction)
    summary, way = by("rows", arguments)
    assert way == "rows"
    return summary, arguments


def check(model, inputs, targets):
    summary, arguments = by_rows(model.double(), inputs, targets)
    exact = summarize(*arguments, curvature="gauss_newton", engine="reference")
    assert difference(summary.gradient, exact.gradient) < 1e-10
    assert difference(summary.hessian, exact.hessian) < 1e-10


def leading_one(m, x):
    h, g = torch.tanh(m.a(x)).unsqueeze(0), torch.tanh(m.b(x))
    return m.o((h + g)[0])


def expanded(m, x):
    h, g = torch.tanh(m.a(x)), torch.tanh(m.b(x))
    return m.o((h.expand(1, *h.shape) + g)[0] + torch.tanh(g))


@pytest.mark.parametrize("forward", [leading_one, expanded])
def test_axes_of_size_one_are_not_new_memory(forward):
    """Two steps receive the same adjoint; the first must not overwrite that of the second."""
    torch.manual_seed(0)
    model = Net(forward, a=nn.Linear(4, 5), b=nn.Linear(4, 5), o=nn.Linear(5, 2))
    check(model, torch.randn(6, 4).double(), torch.randn(6, 2).double())


TRANSPOSED = [
    nn.ConvTranspose1d(3, 2, 3, stride=1, dilation=2, output_padding=1),
    nn.ConvTranspose1d(3, 2, 3, stride=2, dilation=4, output_padding=3, padding=1),
    nn.ConvTranspose2d(3, 2, 2, stride=(1, 2), dilation=(3, 1), output_padding=(2, 1)),
]


@pytest.mark.parametrize("layer", TRANSPOSED)
def test_transposed_convolutions_with_padded_outputs(layer):
    torch.manual_seed(0)
    shape = [6] * (layer.weight.dim() - 2)
    first = (nn.Conv1d if len(shape) == 1 else nn.Conv2d)(2, 3, 3, padding=1)
    model = nn.Sequential(first, nn.Tanh(), layer, nn.Tanh(), nn.Flatten(), nn.LazyLinear(2))
    inputs = torch.randn(3, 2, *shape)
    model(inputs)
    check(model, inputs.double(), torch.randn(3, 2).double())
