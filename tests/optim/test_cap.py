"""The cap on the step of a group holds at every step, and does nothing where steps are short."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gnewton import GroupedNewton, Partition
from gnewton.errors import InputError
from gnewton.optim.cap import FLOOR, StepCap
from gnewton.optim.grouping import Grouping
from gnewton.optim.records import RateUpdate
from tests.optim.problems import classification, tanh_net


def grouping() -> Grouping:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).double()
    with torch.no_grad():
        model[0].weight.fill_(2.0)
        model[0].bias.zero_()
        model[1].weight.fill_(-1.0)
        model[1].bias.fill_(0.5)
    return Grouping(model, Partition.per_tensor(model))


def test_steps_are_shortened_to_the_fraction_and_no_further() -> None:
    groups = grouping()
    steps = [torch.ones_like(p) for p in groups.parameters]
    steps[1].mul_(1e-9)
    StepCap(0.1, groups).shorten(steps)
    # lengths: √12 · 2 · 0.1 allows 1 · √12 no longer, the floor allows the second, then √8 · 0.1, √2 · 0.05
    found = [float(step.norm()) for step in steps]
    assert found == pytest.approx([0.2 * 12**0.5, 2e-9, 0.1 * 8**0.5, 0.05 * 2**0.5], rel=1e-12)


def test_a_group_at_zero_may_still_move() -> None:
    groups = grouping()
    steps = [torch.ones_like(p) for p in groups.parameters]
    StepCap(0.1, groups).shorten(steps)
    assert float(steps[1].norm()) == pytest.approx(0.1 * FLOOR * 2, rel=1e-12)


@pytest.mark.parametrize("cap", [1e-3, 0.02])
def test_no_group_steps_further_than_the_cap(cap: float) -> None:
    model, updates = tanh_net(), []
    partition = Partition.weights_biases(model)
    optimizer = GroupedNewton(
        model, F.cross_entropy, partition, period=3, damping=1.0, cap=cap, on_update=updates.append
    )
    groups = Grouping(model, partition)
    reached = 0.0
    for step in range(20):
        before = [p.detach().clone() for p in groups.parameters]
        sizes = groups.norms(before)
        inputs, targets = classification(20, seed=step)
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        optimizer.step(batch=(inputs, targets))
        moved = groups.norms([p.detach() - q for p, q in zip(groups.parameters, before, strict=True)])
        assert (moved <= cap * sizes * (1 + 1e-9)).all()
        reached = max(reached, float((moved / (cap * sizes)).max()))
    assert reached > 0.999, "the cap was felt"
    assert sum(update.solved.capped for update in updates) > 0


def test_a_wide_cap_changes_nothing() -> None:
    ends = []
    for cap in (None, 1e6):
        model, updates = tanh_net(), list[RateUpdate]()
        optimizer = GroupedNewton(model, F.cross_entropy, cap=cap, period=2, on_update=updates.append)
        for step in range(10):
            inputs, targets = classification(20, seed=step)
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), targets).backward()
            optimizer.step(batch=(inputs, targets))
        assert all(update.solved.capped == 0 for update in updates)
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*ends)


@pytest.mark.parametrize("cap", [0.0, -1.0, float("inf"), float("nan")])
def test_refused(cap: float) -> None:
    with pytest.raises(InputError, match="cap=.*: must be a finite number > 0"):
        StepCap(cap, grouping())
