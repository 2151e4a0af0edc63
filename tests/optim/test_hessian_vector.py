"""The Hessian-vector product against dense autodiff, and the optimizer against its recursion."""

from __future__ import annotations

import pytest
import torch
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from gnewton.errors import InputError
from gnewton.optim.hessian_vector import HessianVector
from gnewton.partition import Partition
from gnewton.summary.problem import Problem
from gnewton.summary.reference import hessian_vector_product

from .problems import NOTHING, Quadratic, classification, tanh_net, value


def test_product_is_that_of_the_dense_hessian() -> None:
    model, (inputs, targets) = tanh_net(), classification(9)
    named = {name: p.detach() for name, p in model.named_parameters()}
    sizes = [p.numel() for p in named.values()]

    def loss(flat: torch.Tensor) -> torch.Tensor:
        pieces = flat.split(sizes)
        values = {name: piece.view_as(p) for piece, (name, p) in zip(pieces, named.items(), strict=True)}
        return cross_entropy(functional_call(model, values, (inputs,)), targets)

    flat = torch.cat([p.flatten() for p in named.values()])
    generator = torch.Generator().manual_seed(3)
    vector = torch.randn(len(flat), generator=generator, dtype=torch.float64)
    gradient, product = hessian_vector_product(
        Problem(model, cross_entropy, Partition.single(model)),
        inputs,
        targets,
        {name: v.view_as(p) for v, (name, p) in zip(vector.split(sizes), named.items(), strict=True)},
    )
    found = torch.cat([piece.flatten() for piece in product.values()])
    torch.testing.assert_close(found, torch.func.hessian(loss)(flat) @ vector, rtol=1e-11, atol=1e-13)
    found = torch.cat([piece.flatten() for piece in gradient.values()])
    torch.testing.assert_close(found, torch.func.grad(loss)(flat), rtol=1e-12, atol=1e-14)


def test_a_linear_loss_has_no_curvature() -> None:
    model = torch.nn.Linear(3, 1).double()
    problem = Problem(model, lambda outputs, targets: outputs.sum(), Partition.single(model))
    ones = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    _, product = hessian_vector_product(problem, torch.ones(2, 3, dtype=torch.float64), None, ones)
    assert all(not piece.any() for piece in product.values())


@pytest.mark.parametrize("ridge", [0.0, 0.5])
def test_steps_follow_the_recursion(ridge: float) -> None:
    model = Quadratic(4)
    optimizer = HessianVector(model, value, lr=0.3, lr_direction=0.05, ridge=ridge)
    x = torch.stack([p.detach().clone() for p in model.x])
    d = torch.zeros(4, dtype=torch.float64)
    for _ in range(20):
        g = model.a @ x - model.b
        d = d - 0.05 * (model.a @ d - g + ridge * d)
        x = x - 0.3 * d

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = model(NOTHING[0])
            loss.backward()
            return loss

        optimizer.step(closure, batch=NOTHING)
    torch.testing.assert_close(torch.stack([p.detach() for p in model.x]), x, rtol=1e-11, atol=1e-12)


def test_direction_settles_at_the_newton_step() -> None:
    """With the parameters held still, d → (A + ρ)⁻¹ g at the linear rate of gradient descent."""
    model = Quadratic(3)
    optimizer = HessianVector(model, value, lr=1e-300, lr_direction=0.1, ridge=0.2)
    model(NOTHING[0]).backward()
    for _ in range(800):
        optimizer.step(batch=NOTHING)
    x = torch.stack([p.detach() for p in model.x])
    newton = torch.linalg.solve(model.a + 0.2 * torch.eye(3, dtype=torch.float64), model.a @ x - model.b)
    found = torch.stack([optimizer.state[p]["direction"] for p in model.x])
    torch.testing.assert_close(found, newton, rtol=1e-9, atol=0)


def train(optimizer: HessianVector, model: torch.nn.Module, steps: range) -> None:
    for step in steps:
        inputs, targets = classification(8, seed=step)
        optimizer.zero_grad()
        cross_entropy(model(inputs), targets).backward()
        optimizer.step(batch=(inputs, targets))


def test_continues_bit_for_bit_from_its_state() -> None:
    whole, half = tanh_net(), tanh_net()
    train(HessianVector(whole, cross_entropy), whole, range(12))
    first = HessianVector(half, cross_entropy)
    train(first, half, range(5))
    second = HessianVector(half, cross_entropy)
    second.load_state_dict(first.state_dict())
    train(second, half, range(5, 12))
    for a, b in zip(whole.parameters(), half.parameters(), strict=True):
        assert torch.equal(a, b)


def test_refuses_what_it_cannot_use() -> None:
    model = tanh_net()
    with pytest.raises(InputError, match=r"lr_direction=0: must be a finite number > 0"):
        HessianVector(model, cross_entropy, lr_direction=0)
    with pytest.raises(InputError, match=r"ridge=-1: must be a finite number >= 0"):
        HessianVector(model, cross_entropy, ridge=-1)
    optimizer = HessianVector(model, cross_entropy)
    with pytest.raises(InputError, match="curvature is due"):
        optimizer.step()
    with pytest.raises(InputError, match="not written by HessianVector"):
        optimizer.load_state_dict(torch.optim.SGD(model.parameters()).state_dict())
    with pytest.raises(InputError, match="add_param_group"):
        optimizer.add_param_group({"params": []})
