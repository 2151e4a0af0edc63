"""Models that write into their own memory: buffers without gradient, ``.data``, parameters."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gnewton.summary import Summarizer, summarize

from .test_zoo import differences


def chained(m, h):
    with torch.no_grad():
        m.mean.mul_(0.9).add_(h.mean(0), alpha=0.1)
    return h - m.mean


def of_views(m, h):
    with torch.no_grad():
        m.mean[1:3] = h.mean(0)[1:3]
        m.mean[0].add_(1)
    return h - m.mean


def of_data(m, h):
    m.mean.data.mul_(0.9).add_(h.mean(0).data)
    return h - m.mean


def of_a_detached_copy(m, h):
    total = h.detach().clone()
    total += h
    return h * total.mean()


def by_operators(m, h):
    with torch.no_grad():
        m.mean *= 0.9
        m.mean += 0.1 * h.mean(0)
    return h - m.mean


class Writing(nn.Module):
    def __init__(self, write):
        super().__init__()
        self.a, self.out, self.write = nn.Linear(5, 6), nn.Linear(6, 3), write
        self.register_buffer("mean", torch.linspace(0, 1, 6))

    def forward(self, x):
        return self.out(self.write(self, torch.tanh(self.a(x))))


def case(model):
    torch.manual_seed(0)
    model = model.double()
    inputs, targets = torch.randn(7, 5).double(), torch.randint(0, 3, (7,))
    return (
        model,
        F.cross_entropy,
        inputs,
        targets,
        "per_tensor",
        [torch.randn_like(p) for p in model.parameters()],
    )


@pytest.mark.parametrize("write", [chained, of_views, of_data, of_a_detached_copy, by_operators])
def test_a_trace_writes_where_the_model_writes(write):
    arguments = case(Writing(write))
    model, loss_fn, inputs, targets, partition, direction = arguments
    before = model.mean.clone()
    traced = Summarizer(model, loss_fn, partition, engine="tangent")
    slow = summarize(*arguments, engine="reference")
    for _ in range(2):  # the second time by comparison with the trace
        assert max(differences(traced.summarize(inputs, targets, direction), slow)) < 1e-10
    assert len(traced.tangent_engine.traces) == 1
    assert torch.equal(model.mean, before)


class Projected(nn.Module):
    """A layer whose weights are scaled to length 1 in every forward pass, and a table with a largest norm."""

    def __init__(self, by):
        super().__init__()
        self.a, self.out, self.by = nn.Linear(5, 6), nn.Linear(6, 3), by
        self.table = nn.Embedding(4, 6, max_norm=0.5 if by == "max_norm" else None)

    def forward(self, x):
        if self.by == "no_grad":
            with torch.no_grad():
                self.a.weight.div_(self.a.weight.norm(dim=1, keepdim=True))
        elif self.by == "data":
            self.a.weight.data.div_(self.a.weight.data.norm(dim=1, keepdim=True))
        shown = self.table(torch.arange(len(x)) % 4)
        return self.out(torch.tanh(self.a(x) + shown))


@pytest.mark.parametrize("curvature", ["hessian", "gauss_newton"])
@pytest.mark.parametrize("by", ["no_grad", "data", "max_norm"])
def test_parameters_that_the_model_writes_stay_the_same(by, curvature):
    torch.manual_seed(1)
    arguments = case(Projected(by))
    model, loss_fn, inputs, targets, *_ = arguments
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    summary = summarize(*arguments, curvature=curvature)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    loss = loss_fn(model(inputs), targets)  # projects
    assert any(not torch.equal(p, before[name]) for name, p in model.named_parameters())
    grads = torch.autograd.grad(loss, list(model.parameters()))
    expected = torch.stack([(g * u).sum() for g, u in zip(grads, arguments[-1], strict=True)])
    torch.testing.assert_close(summary.gradient, expected, rtol=1e-10, atol=1e-12)
