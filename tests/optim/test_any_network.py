"""Whatever the network: no exception, nothing that is not finite, no loss far above the first."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from gnewton import GroupedNewton
from tests.optim.problems import take_step
from tests.thorough import count

STEPS = 40
ACTIVATIONS = (nn.Identity, nn.ReLU, nn.Tanh, nn.GELU, nn.Sigmoid, nn.LeakyReLU)
NORMALISATIONS = (nn.BatchNorm1d, nn.LayerNorm, partial(nn.GroupNorm, 2), None)
LOSSES = (F.cross_entropy, "mse", "l1")


@st.composite
def networks(draw: st.DrawFn) -> nn.Module:
    """Dense networks of one to five layers, with normalisations before or after the activation."""
    torch.manual_seed(draw(st.integers(0, 10_000)))
    layers: list[nn.Module] = []
    width = 6
    for _ in range(draw(st.integers(0, 4))):
        new = draw(st.sampled_from((4, 8, 12)))
        layers.append(nn.Linear(width, new, bias=draw(st.booleans())))
        normalisation = draw(st.sampled_from(NORMALISATIONS))
        rest = [draw(st.sampled_from(ACTIVATIONS))()]
        if normalisation is not None:
            rest.insert(draw(st.integers(0, 1)), normalisation(new))
        layers += rest
        width = new
    model = nn.Sequential(*layers, nn.Linear(width, 3))
    gain = draw(st.sampled_from((0.1, 1.0, 1.0, 3.0, 10.0)))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(gain)
    if draw(st.integers(0, 4)) == 0:
        model.register_parameter("unused", nn.Parameter(torch.randn(3)))
    return model


@st.composite
def options(draw: st.DrawFn, model: nn.Module) -> dict[str, Any]:
    """Options of the optimizer."""
    directions = ["pair", "adam", "adamw", "sgd", "average", "kfac"]
    return {
        "direction": draw(st.sampled_from(directions)),
        "step_size": draw(st.sampled_from((0.3, 1.0, 3.0))),
        "period": draw(st.sampled_from((1, 3, 10))),
        "solver": draw(st.sampled_from(("cubic", "cubic_diagonal", "ridge"))),
    }


@pytest.fixture
def quiet() -> Iterator[None]:
    log = logging.getLogger("gnewton")
    level = log.level
    log.setLevel(logging.ERROR)
    yield
    log.setLevel(level)


@pytest.mark.usefixtures("quiet")
@pytest.mark.slow
@given(data=st.data())
@settings(
    max_examples=count(12, 24), deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
def test_a_training_goes_down_and_never_far_up(data: st.DataObject) -> None:
    model = data.draw(networks())
    loss = data.draw(st.sampled_from(LOSSES))
    inputs = torch.randn(96, 6) * data.draw(st.sampled_from((0.1, 1.0, 10.0)))
    labels = inputs[:, :3].argmax(1)

    def loss_fn(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if loss == "mse":
            return F.mse_loss(outputs, F.one_hot(targets, 3).float())
        if loss == "l1":
            return F.l1_loss(outputs, F.one_hot(targets, 3).float())
        return F.cross_entropy(outputs, targets)

    optimizer = GroupedNewton(model, loss_fn, **data.draw(options(model)))
    losses = []
    for _ in range(STEPS):
        chosen = torch.randperm(96)[:32]
        losses.append(take_step(model, optimizer, (inputs[chosen], labels[chosen]), loss_fn))
        assert all(rate >= 0 for rate in optimizer.rates.values())
    assert all(bool(p.isfinite().all()) for p in model.parameters())
    assert max(losses) <= 10 * losses[0]
    assert sum(losses[-10:]) / 10 <= 1.1 * max(losses[:5])


@pytest.mark.parametrize("direction", [None, "pair", "adam"])
def test_a_loss_without_curvature_is_gone_down(direction: str | None) -> None:
    """A saturated softmax: the loss is linear within rounding along every group, but not flat."""
    torch.manual_seed(0)
    inputs, targets = 1e6 * torch.randn(64, 8), torch.randint(0, 3, (64,))
    model = nn.Linear(8, 3)
    optimizer = GroupedNewton(model, F.cross_entropy, direction=direction)
    losses = []
    for _ in range(150):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs), targets)
        loss.backward()
        losses.append(loss.item())
        optimizer.step(batch=(inputs, targets))
    assert losses[-1] < 0.9 * losses[0]
    assert max(losses) < 2 * losses[0]
