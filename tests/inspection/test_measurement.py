"""Means over batches against one float64 summary of all samples by the reference engine."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from gnewton.inspection.measurement import OptimizerDirection, PointMeasurer, group_depths, mean_gradient
from gnewton.inspection.point_inspection import inspect_point
from gnewton.partition import Partition
from gnewton.summary import summarize

SIZES = (7, 20, 1, 12)
"""Uneven on purpose: the weights of the batches matter."""


@pytest.fixture
def problem():
    model = torch.nn.Sequential(
        torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 5), torch.nn.ELU(), torch.nn.Linear(5, 3)
    ).double()
    inputs, targets = torch.randn(sum(SIZES), 6, dtype=torch.float64), torch.randint(0, 3, (sum(SIZES),))
    return model, inputs, targets


def pieces(inputs, targets):
    return list(zip(inputs.split(SIZES), targets.split(SIZES), strict=True))


def test_the_mean_gradient_is_that_of_the_whole_set(problem):
    model, inputs, targets = problem
    gradient = mean_gradient(model, cross_entropy, pieces(inputs, targets))
    whole = torch.autograd.grad(cross_entropy(model(inputs), targets), list(model.parameters()))
    for (name, p), expected in zip(model.named_parameters(), whole, strict=True):
        torch.testing.assert_close(gradient[name], expected, rtol=1e-13, atol=1e-16)
        assert torch.equal(p.grad, gradient[name])


@pytest.mark.parametrize("engine", ["tangent", "reference"])
def test_the_averaged_summary_is_that_of_the_whole_set(problem, engine):
    model, inputs, targets = problem
    partition = Partition.per_tensor(model)
    direction = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    whole = summarize(model, cross_entropy, inputs, targets, partition, direction, engine="reference")
    measurer = PointMeasurer(model, cross_entropy, partition, engine=engine)
    mean = measurer.mean(pieces(inputs, targets), direction)
    assert (mean.samples, mean.batches) == (sum(SIZES), len(SIZES))
    for name in ("gradient", "hessian", "third"):
        torch.testing.assert_close(getattr(mean, name), getattr(whole, name), rtol=1e-11, atol=1e-13)
    assert mean.loss == pytest.approx(float(whole.loss), rel=1e-11)


def test_equal_weights_for_the_batches_would_be_another_summary(problem):
    """The test above can fail: the plain mean over batches is far from it."""
    model, inputs, targets = problem
    partition = Partition.per_tensor(model)
    direction = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    summaries = [summarize(model, cross_entropy, *b, partition, direction) for b in pieces(inputs, targets)]
    whole = summarize(model, cross_entropy, inputs, targets, partition, direction)
    plain = torch.stack([s.hessian for s in summaries]).mean(0)
    assert (plain - whole.hessian).norm() > 1e-2 * whole.hessian.norm()


def test_without_a_batch_there_is_no_mean(problem):
    model, _, _ = problem
    direction = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    with pytest.raises(ValueError, match="no batch"):
        PointMeasurer(model, cross_entropy, Partition.single(model)).mean([], direction)


def test_norms_and_depths_of_groups(problem):
    model, inputs, targets = problem
    partition = Partition.patterns(model, {"ends": r"^[04]\.", "middle": r"^2\."})
    direction = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    expected = [
        torch.cat([direction[name].flatten() for name in names]).norm().item()
        for names in (["0.weight", "0.bias", "4.weight", "4.bias"], ["2.weight", "2.bias"])
    ]
    mean = PointMeasurer(model, cross_entropy, partition).mean(pieces(inputs, targets), direction)
    assert mean.norms.tolist() == pytest.approx(expected, rel=1e-14)
    assert group_depths(model, partition) == (0, 1)
    assert group_depths(model, Partition.per_tensor(model)) == (0, 0, 1, 1, 2, 2)


def test_a_coupled_decay_is_part_of_the_loss(problem):
    """Against the summary of a loss into which (wd/2)‖θ‖² is written."""
    model, inputs, targets = problem
    wd, partition = 0.3, Partition.per_tensor(model)
    direction = {name: torch.randn_like(p) for name, p in model.named_parameters()}

    class Decayed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, x):
            return self.inner(x), sum(p.square().sum() for p in self.inner.parameters())

    whole = Decayed()
    prefixed = {f"inner.{name}": u for name, u in direction.items()}
    expected = summarize(
        whole,
        lambda outputs, y: cross_entropy(outputs[0], y) + wd / 2 * outputs[1],
        inputs,
        targets,
        Partition.per_tensor(whole),
        prefixed,
        engine="reference",
    )
    inspection = inspect_point(
        model,
        cross_entropy,
        partition,
        lambda: pieces(inputs, targets),
        direction,
        internal_damping=1.0,
        decay=dict.fromkeys(direction, wd),
    )
    assert inspection.gradient == pytest.approx(expected.gradient.numpy(), rel=1e-11)
    assert inspection.hessian == pytest.approx(expected.hessian.numpy(), rel=1e-10, abs=1e-12)
    assert inspection.third == pytest.approx(expected.third.numpy(), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(
    "build",
    [
        lambda named, lr: torch.optim.SGD(named, lr=lr, momentum=0.9),
        lambda named, lr: torch.optim.Adam(named, lr=lr),
    ],
)
def test_the_direction_is_the_step_that_the_optimizer_would_make(problem, build):
    """After some steps the state is handed over; u·lr is what the optimizer then subtracts."""
    model, inputs, targets = problem
    named = list(model.named_parameters())
    optimizer = build(named, 0.01)
    for _ in range(3):
        mean_gradient(model, cross_entropy, pieces(inputs, targets))
        optimizer.step()
    mean_gradient(model, cross_entropy, pieces(inputs, targets))
    state = optimizer.state_dict()
    state = {**state, "param_groups": [{**group, "lr": 1.0} for group in state["param_groups"]]}
    direction = OptimizerDirection(
        model, lambda shadows: build(shadows, 1.0), [name for name, _ in named], state
    )
    proposed = {name: u.clone() for name, u in direction.advance().items()}
    before = {name: p.detach().clone() for name, p in named}
    optimizer.step()
    for name, p in named:
        torch.testing.assert_close(before[name] - p.detach(), 0.01 * proposed[name], rtol=1e-9, atol=1e-13)
