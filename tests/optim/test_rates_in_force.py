"""The trust radius holds at every step, and does nothing where steps are short."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gnewton import GroupedNewton, Partition
from gnewton.errors import InputError
from gnewton.optim.finite_step import Plan, _combined, _effective
from gnewton.optim.grouping import Grouping
from gnewton.optim.rate_rule import RateUpdate
from gnewton.optim.rates_in_force import FIRST, FLOOR, GROWTH, LEAST, TrustRadius
from tests.optim.problems import advance, classification, take_step, tanh_net


def grouping() -> Grouping:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).double()
    with torch.no_grad():
        model[0].weight.fill_(2.0)
        model[0].bias.zero_()
        model[1].weight.fill_(-1.0)
        model[1].bias.fill_(0.5)
    return Grouping(model, Partition.per_tensor(model))


def limits(trust: TrustRadius, groups: Grouping) -> torch.Tensor:
    return trust.lengths(groups.norms(groups.parameters), bounded=True)


def test_lengths_are_relative_to_the_parameters_of_each_group() -> None:
    groups = grouping()
    trust = TrustRadius(0.5, groups)
    trust.radius = 0.1
    # lengths of the groups: √12 · 2, 0 (the floor stands in), √8, √2 · 0.5
    expected = [0.2 * 12**0.5, 0.1 * FLOOR * 2, 0.1 * 8**0.5, 0.05 * 2**0.5]
    assert limits(trust, groups).tolist() == pytest.approx(expected, rel=1e-12)


def test_steps_are_shortened_to_the_limit_and_no_further() -> None:
    groups = grouping()
    direction = [torch.ones_like(p) for p in groups.parameters]
    direction[1].mul_(1e-9)
    trust = TrustRadius(0.5, groups)
    trust.radius = 0.1
    plan = Plan([1.0] * 4, limits(trust, groups))
    step = _combined([direction], _effective([direction], plan, groups)[0])
    expected = [0.2 * 12**0.5, 2e-9, 0.1 * 8**0.5, 0.05 * 2**0.5]
    assert [float(part.norm()) for part in step] == pytest.approx(expected, rel=1e-12)


def test_the_radius_grows_to_the_cap_and_shrinks_by_half() -> None:
    trust = TrustRadius(0.2, grouping())
    assert trust.radius == pytest.approx(FIRST * 0.2)
    trust.grow(5)
    assert trust.radius == pytest.approx(FIRST * GROWTH**5 * 0.2)
    for _ in range(20):
        trust.grow(10)
    assert trust.radius == 0.2
    trust.shrink()
    assert trust.radius == 0.1
    for _ in range(20):
        trust.shrink()
    assert trust.radius == pytest.approx(LEAST * 0.2)


def test_where_there_is_no_minimiser_the_least_radius_holds() -> None:
    groups = grouping()
    trust = TrustRadius(0.2, groups)
    sizes = groups.norms(groups.parameters)
    before = trust.lengths(sizes, bounded=False)
    for _ in range(20):
        trust.grow(10)
    assert torch.equal(trust.lengths(sizes, bounded=False), before)
    trust.radius = LEAST * 0.2
    assert torch.equal(limits(trust, groups), before)


@pytest.mark.parametrize("cap", [1e-3, 0.02])
def test_no_group_steps_further_than_the_cap(cap: float) -> None:
    model, updates = tanh_net(), []
    partition = Partition.weights_biases(model)
    optimizer = GroupedNewton(
        model, F.cross_entropy, partition, period=3, step_size=3.0, cap=cap, on_update=updates.append
    )
    groups = Grouping(model, partition)
    reached = 0.0
    sizes = groups.norms(groups.parameters)
    for step in range(150):
        before = [p.detach().clone() for p in groups.parameters]
        sizes = groups.norms(before) if step % 3 == 0 else sizes
        take_step(model, optimizer, classification(20, seed=step))
        moved = groups.norms([p.detach() - q for p, q in zip(groups.parameters, before, strict=True)])
        assert (moved <= cap * sizes * (1 + 1e-9)).all()
        reached = max(reached, float((moved / (cap * sizes)).max()))
    assert reached > 0.5, "the cap was felt"
    assert sum(update.solved.capped for update in updates) > 0


def test_a_wide_cap_changes_nothing() -> None:
    ends = []
    for cap in (None, 1e6):
        model, updates = tanh_net(), list[RateUpdate]()
        optimizer = GroupedNewton(model, F.cross_entropy, cap=cap, period=2, on_update=updates.append)
        ends.append(advance(model, optimizer, 0, 10))
        assert all(update.solved.capped == 0 for update in updates)
    assert torch.equal(*ends)


@pytest.mark.parametrize("cap", [0.0, -1.0, float("inf"), float("nan"), True, "0.1"])
def test_refused(cap: float) -> None:
    with pytest.raises(InputError, match="cap=.*: must be a finite number > 0"):
        TrustRadius(cap, grouping())
