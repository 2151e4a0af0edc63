"""Nothing that is not finite reaches a parameter, whichever part of a step it comes from."""

from __future__ import annotations

import copy
import math
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from gnewton import GroupedNewton
from gnewton.optim.directions import muon_with_adamw
from gnewton.optim.finite_step import all_finite, subtract_finite
from gnewton.optim.grouped_newton import RateUpdate
from gnewton.optim.kfac import KFAC
from gnewton.optim.shadow_direction import DirectionFactory
from tests.optim.problems import classification, take_step, tanh_net

BAD = [float("nan"), float("inf"), float("-inf")]


def _tensors(*, dense: bool, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    torch.manual_seed(3)
    wide = [torch.randn(4, 6, dtype=dtype), torch.randn(10, dtype=dtype)]
    return wide if dense else [wide[0][:, ::2], wide[1][1::3]]


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_finite_steps_are_made_exactly(dense: bool, dtype: torch.dtype) -> None:
    parameters = _tensors(dense=dense, dtype=dtype)
    steps = [torch.randn_like(p) * 10 ** torch.randint(-8, 4, p.shape).to(dtype) for p in parameters]
    expected = [p - step for p, step in zip(parameters, steps, strict=True)]
    assert bool(subtract_finite(parameters, steps))
    assert all(torch.equal(p, e) for p, e in zip(parameters, expected, strict=True))


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("where", [0, 1])
def test_one_bad_entry_holds_all_of_them_back(dense: bool, bad: float, where: int) -> None:
    parameters = _tensors(dense=dense)
    before = copy.deepcopy(parameters)
    steps = [torch.ones_like(p) for p in parameters]
    steps[where].view(-1)[2] = bad
    assert not bool(all_finite(steps))
    assert not bool(subtract_finite(parameters, steps))
    assert all(torch.equal(p, b) for p, b in zip(parameters, before, strict=True))


def test_memory_beside_a_parameter_is_left_alone() -> None:
    """A kernel that counts through memory must not be given a view with gaps, or channels-last strides."""
    whole = torch.zeros(8, 6, dtype=torch.float64)
    subtract_finite([whole[::2]], [torch.ones(4, 6, dtype=torch.float64)])
    assert torch.equal(whole[1::2], torch.zeros(4, 6, dtype=torch.float64))
    image = torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last)
    step = torch.arange(120.0).view(2, 3, 4, 5)
    subtract_finite([image], [step])
    assert torch.equal(image, -step)


def test_nothing_is_finite() -> None:
    assert bool(all_finite([]))


DIRECTIONS: dict[str, DirectionFactory] = {
    "sgd": partial(torch.optim.SGD, lr=1.0, momentum=0.9),
    "adam": partial(torch.optim.Adam, lr=1.0),
    "adamw": partial(torch.optim.AdamW, lr=1.0),
    "nadam": partial(torch.optim.NAdam, lr=1.0),
    "rmsprop": partial(torch.optim.RMSprop, lr=1.0),
    "muon": muon_with_adamw,
}


def _kfac(model: nn.Module) -> DirectionFactory:
    def build(named: list[tuple[str, Tensor]]) -> torch.optim.Optimizer:
        return KFAC(model, lr=1.0, params=named, fisher="empirical")

    return build


@pytest.mark.parametrize("name", [*DIRECTIONS, "kfac"])
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize(
    "position", [0, 3, 4, 5], ids=["warming up", "after an update", "before one", "at one"]
)
def test_a_bad_gradient_stops_the_parameters_until_the_direction_starts_anew(
    name: str, bad: float, position: int
) -> None:
    model, updates = tanh_net(), []
    factory = _kfac(model) if name == "kfac" else DIRECTIONS[name]
    optimizer = GroupedNewton(
        model, F.cross_entropy, direction=factory, period=3, warmup=2, on_update=updates.append
    )
    # RMSprop forgets an infinite gradient at once, but for the average that it divides by
    forgets = name == "rmsprop" and math.isinf(bad)
    last = position if forgets else _next_update(position)
    for step in range(12):
        before = copy.deepcopy(list(model.parameters()))
        take_step(model, optimizer, classification(20), poison=bad if step == position else None)
        assert all(bool(p.isfinite().all()) for p in model.parameters())
        moved = any(not torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
        held = position <= step <= last
        assert moved == (step >= 2 and not held), step
    statuses = [update.solved.solution.status for update in updates]
    assert statuses.count("invalid_input") <= (last in (0, 1, 2, 5))  # what is new may be finite by then
    assert int(optimizer.withheld) == sum(step >= 2 for step in range(position, last + 1))
    state = optimizer.state_dict()["grouped_newton"]["directions"]["members"][0]
    assert all(bool(value.isfinite().all()) for value in _tensors_in(state))


def _tensors_in(tree: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def _next_update(step: int) -> int:
    """The first step from ``step`` on at which the rates are renewed: 0, 1, 2, 5, 8, …"""
    return step if step < 2 else 2 + -(-(step - 2) // 3) * 3


def test_rates_that_overflow_a_step_move_nothing() -> None:
    model = tanh_net()
    updates: list[RateUpdate] = []
    options: dict[str, Any] = {"direction": "adam", "period": 10, "on_update": updates.append}
    optimizer = GroupedNewton(model, F.cross_entropy, **options)
    take_step(model, optimizer, classification(20))
    before = copy.deepcopy(list(model.parameters()))
    optimizer.param_groups[0]["rate"] = float("inf")
    take_step(model, optimizer, classification(20))
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    assert int(optimizer.withheld) == 1
