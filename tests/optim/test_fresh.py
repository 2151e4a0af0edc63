"""The fresh part of a direction is what the present gradient adds; its weight, how many a step holds."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim

from gnewton.optim.kfac import KFAC
from gnewton.optim.shadow_direction import ShadowDirection
from tests.optim.problems import classification, tanh_net

LINEAR: dict[str, partial[optim.Optimizer]] = {
    "sgd": partial(optim.SGD, lr=1.0),
    "momentum": partial(optim.SGD, lr=1.0, momentum=0.9),
    "dampened": partial(optim.SGD, lr=0.5, momentum=0.9, dampening=0.9),
    "half dampened": partial(optim.SGD, lr=1.0, momentum=0.8, dampening=0.5),
    "nesterov": partial(optim.SGD, lr=1.0, momentum=0.9, nesterov=True),
}
"""Directions that are linear in the gradients."""


def backward(model: nn.Module, seed: int, scale: float = 1.0) -> None:
    inputs, targets = classification(20, seed=seed)
    model.zero_grad()
    (scale * nn.functional.cross_entropy(model(inputs), targets)).backward()


@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_of_a_constant_gradient_the_direction_is_weight_times_the_fresh_part(name: str, decay: float) -> None:
    model = tanh_net()
    direction = ShadowDirection(model.named_parameters(), partial(LINEAR[name], weight_decay=decay))
    for _ in range(15):
        backward(model, 0)
        u, v = direction.advance(fresh=True)
        for a, b, w in zip(u, v, direction.weights, strict=True):
            torch.testing.assert_close(a, w * b, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["adam", "amsgrad", "adamw", "nadam", "rmsprop", "centered"])
def test_the_fresh_part_is_the_step_at_momentum_zero(name: str) -> None:
    """Against a twin without momentum, fed with the same gradients."""
    build: dict[str, Any] = {
        "adam": lambda beta: partial(optim.Adam, lr=0.7, betas=(beta, 0.9)),
        "amsgrad": lambda beta: partial(optim.Adam, lr=1.0, betas=(beta, 0.9), amsgrad=True),
        "adamw": lambda beta: partial(optim.AdamW, lr=1.0, betas=(beta, 0.9), weight_decay=0.3),
        "nadam": lambda beta: partial(optim.NAdam, lr=1.0, betas=(beta, 0.9), momentum_decay=0.0),
        "rmsprop": lambda beta: partial(optim.RMSprop, lr=1.0, momentum=beta),
        "centered": lambda beta: partial(optim.RMSprop, lr=1.0, momentum=beta, centered=True),
    }
    model = tanh_net()
    direction = ShadowDirection(model.named_parameters(), build[name](0.9))
    twin = ShadowDirection(model.named_parameters(), build[name](0.0))
    for step in range(12):
        backward(model, step)
        _, v = direction.advance(fresh=True)
        for a, b in zip(v, twin.update(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_kfac_leaves_its_preconditioned_gradient() -> None:
    model, twin = tanh_net(), tanh_net()
    built = [
        ShadowDirection(
            net.named_parameters(),
            lambda named, net=net, mu=mu: KFAC(net, lr=0.5, params=named, momentum=mu, seed=1),
        )
        for net, mu in ((model, 0.9), (twin, 0.0))
    ]
    for step in range(12):
        backward(model, step)
        backward(twin, step)
        u, v = built[0].advance(fresh=True)
        for a, b in zip(v, built[1].update(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    assert built[0].weights == pytest.approx([(1 - 0.9**12) / 0.1] * 6)
    assert any(not torch.equal(a, b) for a, b in zip(u, v, strict=True))


class Unknown(optim.Optimizer):
    """An optimizer that this project knows nothing about."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {})

    def step(self, closure: Any = None) -> None:
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    p.sub_(p.grad.sign())


def test_an_unknown_direction_is_taken_as_a_whole() -> None:
    model = tanh_net()
    direction = ShadowDirection(model.named_parameters(), Unknown)
    backward(model, 0)
    u, v = direction.advance(fresh=True)
    assert all(torch.equal(a, b) for a, b in zip(u, v, strict=True))
    assert direction.weights == [1.0] * 6


def test_parameters_without_gradient_have_no_fresh_part() -> None:
    model = tanh_net()
    model.spare = nn.Linear(2, 2).double()
    direction = ShadowDirection(model.named_parameters(), partial(optim.Adam, lr=1.0))
    inputs, targets = classification(20)
    loss = nn.functional.cross_entropy(nn.Sequential(*list(model.children())[:5])(inputs), targets)
    loss.backward()
    _, v = direction.advance(fresh=True)
    spare: list[Tensor] = v[-2:]
    assert all(bool((part == 0).all()) for part in spare)
