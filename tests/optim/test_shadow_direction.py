"""The direction is what the inner optimizer would have subtracted, exactly."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch

from gnewton.errors import InputError
from gnewton.optim.shadow_direction import ShadowDirection

FACTORIES: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "gradient": partial(torch.optim.SGD, lr=1.0),
    "momentum": partial(torch.optim.SGD, lr=1.0, momentum=0.9),
    "dampened": partial(torch.optim.SGD, lr=1.0, momentum=0.9, dampening=0.9),
    "nesterov": partial(torch.optim.SGD, lr=1.0, momentum=0.9, nesterov=True),
    "adam": partial(torch.optim.Adam, lr=1.0),
    "nadam": partial(torch.optim.NAdam, lr=1.0),
    "rmsprop": partial(torch.optim.RMSprop, lr=1.0),
}


def named(tensors: list[torch.Tensor]) -> list[tuple[str, torch.Tensor]]:
    return [(f"p{i}", tensor) for i, tensor in enumerate(tensors)]


class Foreign(torch.optim.Optimizer):
    """An optimizer from outside torch; nobody knows how it applies weight decay."""

    def __init__(self, parameters: object, weight_decay: float) -> None:
        super().__init__(parameters, {"weight_decay": weight_decay})


@pytest.mark.parametrize("name", FACTORIES)
def test_direction_equals_the_step_of_the_optimizer(name: str) -> None:
    generator = torch.Generator().manual_seed(1)
    ours = [torch.zeros(3, 2, dtype=torch.float64, requires_grad=True), torch.zeros(5, requires_grad=True)]
    theirs = [p.detach().clone().requires_grad_() for p in ours]
    direction, optimizer = ShadowDirection(named(ours), FACTORIES[name]), FACTORIES[name](theirs)
    for _ in range(5):
        before = [p.detach().clone() for p in theirs]
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)
            q.grad = p.grad.clone()
        optimizer.step()
        for u, old, new, p in zip(direction.update(), before, theirs, ours, strict=True):
            tolerance = 1e-12 if p.dtype == torch.float64 else 1e-5
            torch.testing.assert_close(u, (old - new).detach(), rtol=tolerance, atol=tolerance)
            assert torch.equal(p.detach(), torch.zeros_like(p)), "the parameters stay where they are"


def test_a_parameter_without_gradient_has_no_direction() -> None:
    used, unused = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    used.grad = torch.ones(2)
    moved, still = ShadowDirection(named([used, unused]), FACTORIES["momentum"]).update()
    assert moved.tolist() == [1, 1]
    assert still.tolist() == [0, 0]


def test_direction_is_exact_for_tiny_gradients_of_large_parameters() -> None:
    parameter = torch.full((3,), 1e6, requires_grad=True)
    parameter.grad = torch.full((3,), 1.2345e-9)
    (u,) = ShadowDirection(named([parameter]), FACTORIES["gradient"]).update()
    assert torch.equal(u, parameter.grad)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (torch.optim.LBFGS, "direction=LBFGS: it needs a closure"),
        (torch.optim.SparseAdam, "direction=SparseAdam: it takes sparse gradients only"),
        (torch.optim.Adafactor, "direction=Adafactor: its step depends on the size of the parameters"),
        (torch.optim.ASGD, "direction=ASGD: its step shrinks the parameters"),
        (partial(Foreign, weight_decay=0.1), "direction=Foreign weight_decay=0.1: must be 0, or"),
        (partial(torch.optim.SGD, maximize=True), "set maximize=True of GroupedNewton"),
    ],
)
def test_what_cannot_be_a_direction_is_refused(
    factory: Callable[..., torch.optim.Optimizer], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        ShadowDirection(named([torch.zeros(2, requires_grad=True)]), factory)


def test_the_factory_gets_the_names_of_the_parameters() -> None:
    seen: list[str] = []

    def factory(pairs: list[tuple[str, torch.Tensor]]) -> torch.optim.Optimizer:
        seen.extend(name for name, _ in pairs)
        return torch.optim.SGD(pairs, lr=1.0)

    direction = ShadowDirection(named([torch.zeros(2), torch.zeros(3)]), factory)
    assert seen == ["p0", "p1"]
    assert direction.inner.param_groups[0]["param_names"] == seen


def test_a_parameter_without_gradient_does_not_decay() -> None:
    used, unused = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    used.grad = torch.zeros(2)
    factory = partial(torch.optim.AdamW, lr=1.0, weight_decay=0.1)
    moved, still = ShadowDirection(named([used, unused]), factory).update()
    torch.testing.assert_close(moved, torch.full((2,), 0.1))
    assert still.tolist() == [0, 0]


def test_gradients_are_left_as_they_were() -> None:
    parameter = torch.ones(3, requires_grad=True)
    parameter.grad = torch.arange(3.0)
    factory = partial(torch.optim.SGD, lr=1.0, weight_decay=0.5)
    ShadowDirection(named([parameter]), factory, maximize=True).update()
    assert parameter.grad.tolist() == [0, 1, 2]


def test_sparse_gradients_are_refused() -> None:
    embedding = torch.nn.Embedding(4, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(InputError, match="sparse"):
        ShadowDirection(named([embedding.weight]), FACTORIES["gradient"]).update()
