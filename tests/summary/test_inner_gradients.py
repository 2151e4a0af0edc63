"""Models that form gradients inside: the tangent engine is exact, and notices what changes in there."""

from __future__ import annotations

import logging

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gnewton import GroupedNewton, loss_derivatives
from gnewton.partition import Partition
from gnewton.summary import Summarizer, summarize
from gnewton.summary.tangent import trace_cache, trace_guard

from . import inner_gradients, oracles
from .inner_gradients import slope
from .operations import Net
from .test_zoo import difference, differences
from .ways import by
from .zoo import linear

CASES = inner_gradients.CASES
NORMS = ("batch_norm", "instance_norm", "layer_norm", "attention")  # torch's third derivatives are wrong


def along_groups(phi, size):
    """φ(0), its gradient, its Hessian and its third derivatives along the axes, by nested reverse mode."""
    epsilon = torch.zeros(size, dtype=torch.float64, requires_grad=True)
    value = phi(epsilon)

    def derive(scalar):
        grads = torch.autograd.grad(scalar, epsilon, create_graph=True, allow_unused=True)[0]
        return torch.zeros_like(epsilon) if grads is None else grads

    gradient = derive(value)
    rows = [derive(entry) if entry.requires_grad else torch.zeros_like(epsilon) for entry in gradient]
    third = [derive(row[s])[s] if row.requires_grad else epsilon[s] for s, row in enumerate(rows)]
    return value, gradient, torch.stack(rows), torch.stack(third)


@pytest.mark.parametrize("name", CASES)
def test_the_tangent_engine_is_exact(name):
    """Against autograd in ε, and against the reference engine."""
    model, loss_fn, inputs, targets, direction = inner_gradients.make(name)
    partition = Partition.per_tensor(model)
    problem = (model, loss_fn, inputs, targets, partition, direction)
    state = torch.get_rng_state()
    fast = summarize(*problem, engine="tangent")
    assert max(differences(fast, summarize(*problem, engine="reference"))) < 1e-10
    assert torch.equal(state, torch.get_rng_state())
    if name not in NORMS:
        value, gradient, hessian, third = along_groups(
            lambda epsilon: oracles.phi(*problem, epsilon), len(partition)
        )
        assert difference(fast.loss, value.detach()) < 1e-10
        assert difference(fast.gradient, gradient.detach()) < 1e-10
        assert difference(fast.hessian, hessian.detach()) < 1e-10
        assert difference(fast.third, third.detach()) < 1e-10


@pytest.mark.parametrize("name", NORMS)
def test_normalisations_inside_agree_with_finite_differences(name):
    model, loss_fn, inputs, targets, direction = inner_gradients.make(name)
    partition = Partition.per_tensor(model)
    summary = summarize(model, loss_fn, inputs, targets, partition, direction, engine="tangent")
    state, axis = torch.get_rng_state(), torch.ones(len(partition), dtype=torch.float64) / len(partition)

    def phi(t):
        torch.set_rng_state(state)
        return oracles.phi(model, loss_fn, inputs, targets, partition, direction, t * axis).item()

    first, second, _ = oracles.along(phi, 1e-3)
    assert abs(first - summary.gradient @ axis) < 1e-8 * summary.gradient.norm()
    assert abs(second - axis @ summary.hessian @ axis) < 1e-5 * summary.hessian.norm()


@pytest.mark.parametrize("name", ["burgers", "critic", "layer_norm", "inner_step"])
def test_in_single_precision(name):
    model, loss_fn, inputs, targets, direction = inner_gradients.make(name, torch.float32)
    problem = (model, loss_fn, inputs, targets, "per_tensor", direction)
    fast, slow = (summarize(*problem, engine=engine) for engine in ("tangent", "reference"))
    assert max(differences(fast, slow)) < 1e-4


@pytest.mark.parametrize("name", ["burgers", "by_func", "by_jvp", "GELU", "inner_step", "forces"])
def test_gauss_newton_matrices(name):
    model, loss_fn, inputs, targets, direction = inner_gradients.make(name)
    problem = (model, loss_fn, inputs, targets, Partition.per_tensor(model), direction)
    expected = summarize(*problem, curvature="gauss_newton", engine="reference")
    for way in ("tangents", "rows"):
        found, taken = by(way, problem)
        assert taken == ("tangents" if name == "inner_step" else way)  # its samples are coupled
        assert difference(found.hessian, expected.hessian) < 1e-10
        assert difference(found.gradient, expected.gradient) < 1e-10


@pytest.mark.parametrize("name", ["burgers", "critic", "inner_step"])
def test_derivatives_of_high_order(name):
    model, loss_fn, inputs, targets, direction = inner_gradients.make(name)
    problem = (model, loss_fn, inputs, targets, "per_tensor", direction)
    series = loss_derivatives(*problem, order=4, engine="taylor")
    nested = loss_derivatives(*problem, order=4, engine="reference")
    assert difference(series, nested) < 1e-10


def test_a_batch_is_split():
    model, loss_fn, inputs, targets, direction = inner_gradients.make("burgers")
    problem = (model, loss_fn, inputs, targets, "per_tensor", direction)
    whole, parts = (summarize(*problem, engine="tangent", max_memory=m) for m in (None, 5_000))
    assert max(differences(parts, whole)) < 1e-12


# --- what changes -------------------------------------------------------------------------------------------


def viscous(state):
    def forward(m, x):
        x = x.clone().requires_grad_()
        u = m.net(x)
        return slope(u, x)[:, :1] - state["nu"] * slope(slope(u, x)[:, 1], x)[:, 1:]

    return forward


def constant_graph(state):
    """An inner gradient that becomes a constant."""

    def forward(m, x):
        x = x.clone().requires_grad_()
        u = m.net(x)
        return u * slope(u, x, create_graph=state["nu"] < 0.3, retain_graph=True)[:, :1]

    return forward


def written(state):
    """Writes into a part of what is kept: the other parts, and the whole, are read again."""

    def forward(m, x):
        x = x.clone().requires_grad_()
        u = m.net(x)
        g = slope(u, x)
        kept = torch.zeros_like(g)
        kept[:, 0] = state["nu"]
        kept[:, 1] += g[:, 0]
        return kept.sum(1, keepdim=True) + u

    return forward


def replaced(state):
    def forward(m, x):
        x = x.clone().requires_grad_()
        return slope(m.net(x), x)[:, :1] * torch.tensor([1.0 + state["nu"]], dtype=x.dtype)

    return forward


def inner_rate(state):
    def forward(m, x):
        loss = m.net(x).square().mean()
        weight = m.net[0].weight
        (g,) = torch.autograd.grad(loss, weight, create_graph=True)
        return m.net[2](torch.tanh(F.linear(x, weight - state["nu"] * g, m.net[0].bias)))

    return forward


CHANGES = [viscous, constant_graph, written, replaced, inner_rate]


@pytest.mark.parametrize("make", CHANGES)
def test_the_summary_is_that_of_the_present_loss(make):
    state = {"nu": 0.1}
    torch.manual_seed(0)
    model = Net(make(state), net=linear(2, 5, 1)).double()
    direction = [torch.randn_like(p) for p in model.parameters()]
    inputs, targets = (x.double() for x in inner_gradients.points())
    fast, slow = (
        Summarizer(model, F.mse_loss, "per_tensor", engine=engine) for engine in ("tangent", "reference")
    )
    for nu in (0.1, 0.1, 0.1 + 1e-9, 0.4, 0.4, 0.1):
        state["nu"] = nu
        a, b = (s.summarize(inputs, targets, direction) for s in (fast, slow))
        assert max(differences(a, b)) < 1e-10, nu
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(0.97)
    assert all(trace.rounding is None for trace in fast.tangent_engine.traces), "operations are compared"


# they write in place: the comparison computes the model again
COMPUTED = ("batch_norm", "by_func")
# values that the loss does not need
UNNEEDED = ("by_jvp", "both_ways", "by_functional")


@pytest.mark.parametrize("name", CASES)
def test_a_loss_that_stays_is_traced_once_and_not_computed_again(name, monkeypatch):
    traced, computed = [], []
    trace, compute = trace_cache.trace, trace_guard._Replay._compute
    monkeypatch.setattr(trace_cache, "trace", lambda *args: traced.append(1) or trace(*args))

    def spy(self, func, args, kwargs):
        computed.append(func)
        return compute(self, func, args, kwargs)

    model, loss_fn, inputs, targets, direction = inner_gradients.make(name)
    summarizer = Summarizer(model, loss_fn, "per_tensor", engine="tangent")
    summarizer.summarize(inputs, targets, direction)
    monkeypatch.setattr(trace_guard._Replay, "_compute", spy)
    for _ in range(2):
        summarizer.summarize(inputs.clone(), targets, direction)
    (kept,) = summarizer.tangent_engine.traces
    assert (len(traced), kept.uses, kept.rounding) == (1, 2, None)
    if name not in (*COMPUTED, *UNNEEDED):
        products = ("mm", "convolution", "tanh")
        assert not [op for op in computed if any(part in str(op) for part in products)]


@pytest.mark.parametrize("name", ["burgers", "batch_norm", "critic_in_place"])
def test_nothing_is_left_behind(name):
    model, loss_fn, inputs, targets, direction = inner_gradients.make(name)
    before = [x.clone() for x in (*model.state_dict().values(), inputs)]
    summarizer = Summarizer(model, loss_fn, "per_tensor", engine="tangent")
    for _ in range(2):
        summarizer.summarize(inputs, targets, direction)
    for a, b in zip((*model.state_dict().values(), inputs), before, strict=True):
        assert torch.equal(a, b)
    assert not inputs.requires_grad
    assert all(p.grad is None for p in model.parameters())


# --- what is refused ----------------------------------------------------------------------------------------


class Halved(torch.autograd.Function):
    """x, with half the derivative."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad / 2


def with_hidden(change):
    def forward(m, x):
        x = x.clone().requires_grad_()
        h = change(m.a(x))
        u = m.b(torch.tanh(h))
        return slope(u, x)[:, :1] + u

    return Net(forward, a=nn.Linear(2, 4), b=nn.Linear(4, 1))


def hooked(h):
    h.register_hook(lambda g: g / 2)
    return h


@pytest.mark.parametrize("change", [Halved.apply, hooked], ids=["function", "hook"])
def test_own_backward_passes_go_to_the_reference_engine(change, caplog):
    torch.manual_seed(0)
    model = with_hidden(change).double()
    inputs, targets = (x.double() for x in inner_gradients.points())
    direction = [torch.randn_like(p) for p in model.parameters()]
    problem = (model, F.mse_loss, inputs, targets, "per_tensor", direction)
    with caplog.at_level(logging.WARNING, "gnewton.summary"):
        found = summarize(*problem)
    assert "the reference engine takes over: the " in caplog.text
    assert max(differences(found, summarize(*problem, engine="reference"))) < 1e-12


# --- training -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["burgers", "by_func", "critic", "convolutions", "inner_step"])
def test_training_is_that_with_the_reference_engine(name, caplog):
    losses = {}
    for engine in ("auto", "reference"):
        model, loss_fn, inputs, targets, _ = inner_gradients.make(name)
        optimizer = GroupedNewton(model, loss_fn, engine=engine, period=3, warmup=2)
        generator = torch.Generator().manual_seed(5)
        values = []
        for _ in range(30):
            batch = inputs + 0.1 * torch.randn(inputs.shape, generator=generator, dtype=inputs.dtype)
            optimizer.zero_grad()
            loss = loss_fn(model(batch.clone()), targets)
            loss.backward()
            optimizer.step(batch=(batch, targets))
            values.append(loss.item())
        losses[engine] = torch.tensor(values)
    assert "takes over" not in caplog.text
    torch.testing.assert_close(losses["auto"], losses["reference"], rtol=1e-6, atol=1e-9)
