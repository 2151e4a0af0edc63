"""Layers that are unfrozen, frozen or replaced after K-FAC was built."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from gnewton import KFAC, GroupedNewton
from gnewton.errors import InputError
from tests.optim.problems import classification, tanh_net


def backward(model: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    batch = classification(16)
    model.zero_grad()
    cross_entropy(model(batch[0]), batch[1]).backward()
    return batch


def frozen_below() -> nn.Module:
    model = tanh_net()
    model[0].requires_grad_(False)  # type: ignore[index]
    return model


def replace(model: nn.Module) -> None:
    model[2].weight = nn.Parameter(model[2].weight.detach().clone())  # type: ignore[index]


CHANGES: dict[str, tuple[Callable[[nn.Module], object], str]] = {
    "unfrozen": (
        lambda model: model[0].requires_grad_(True),  # type: ignore[index]
        "it does not hold 0.bias, 0.weight; freeze it or build a new",
    ),
    "frozen": (
        lambda model: model[2].requires_grad_(False),  # type: ignore[index]
        "it has no trainable 2.bias, 2.weight",
    ),
    "replaced": (replace, "the model has other tensors now as 2.weight; build a new optimizer"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_kfac_refuses_to_leave_a_layer_behind(change: str) -> None:
    model = frozen_below()
    optimizer = KFAC(model)
    backward(model)
    optimizer.step()
    alter, message = CHANGES[change]
    alter(model)
    backward(model)
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(InputError, match=f"^KFAC: .*{message}"):
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    if change == "unfrozen":  # frozen again it goes on
        model[0].requires_grad_(False)  # type: ignore[index]
        backward(model)
        optimizer.step()


def test_a_new_kfac_trains_the_unfrozen_layer() -> None:
    model = frozen_below()
    backward(model)
    model[0].requires_grad_(True)  # type: ignore[index]
    before = model[0].weight.detach().clone()  # type: ignore[index]
    optimizer = KFAC(model)
    backward(model)
    optimizer.step()
    assert optimizer.layers == ["0", "2", "4"]
    assert bool((before != model[0].weight).any())  # type: ignore[index]


def with_kfac(model: nn.Module) -> GroupedNewton:
    return GroupedNewton(
        model,
        cross_entropy,
        period=1,
        warmup=1,
        direction=lambda named: KFAC(model, params=named, kl_clip=None),
    )


def test_as_a_direction_the_group_is_asked_for_and_then_trained() -> None:
    model = frozen_below()
    optimizer = with_kfac(model)
    optimizer.step(batch=backward(model))
    model[0].requires_grad_(True)  # type: ignore[index]
    batch = backward(model)
    with pytest.raises(InputError, match=r"no group holds 0.bias, 0.weight; freeze it or add a group for it"):
        optimizer.step(batch=batch)
    optimizer.add_param_group({"params": list(model[0].parameters()), "name": "below"})  # type: ignore[index]
    before = model[0].weight.detach().clone()  # type: ignore[index]
    for _ in range(40):
        optimizer.step(batch=backward(model))
    assert bool((before != model[0].weight).any())  # type: ignore[index]


def test_a_kfac_for_some_parameters_leaves_the_others_to_others() -> None:
    model = tanh_net()
    optimizer = KFAC(model, params=[(n, p) for n, p in model.named_parameters() if n.startswith("4")])
    backward(model)
    optimizer.step()
    model[0].requires_grad_(False)  # type: ignore[index]
    backward(model)
    optimizer.step()
    model[4].requires_grad_(False)  # type: ignore[index]
    backward(model)
    with pytest.raises(InputError, match="^KFAC: .*it has no trainable 4.bias, 4.weight"):
        optimizer.step()
