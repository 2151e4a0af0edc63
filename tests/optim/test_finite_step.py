"""The step taken in place against the same step made as tensors of its own."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from gnewton import Partition
from gnewton.optim.finite_step import Plan, _combined, _effective, subtract_finite, take
from gnewton.optim.grouping import Grouping
from gnewton.optim.rates_in_force import TrustRadius, per_entry
from tests.optim.problems import tanh_net


def _setting(count: int) -> tuple[nn.Module, Grouping, list[list[Tensor]], list[float]]:
    model = tanh_net()
    grouping = Grouping(model, Partition.by_layer(model))
    generator = torch.Generator().manual_seed(4)
    directions = [
        [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in grouping.parameters]
        for _ in range(count)
    ]
    rates = torch.randn(len(grouping.partition) * count, generator=generator, dtype=torch.float64).tolist()
    rates[1] = 0.0
    return model, grouping, directions, rates


def _plan(fraction: float | None, grouping: Grouping, rates: list[float], count: int) -> Plan:
    """A plan with a weight for each parameter, and with limits where there is a fraction."""
    weights = [[1.0 + 0.5 * i + j for i in range(len(grouping.parameters))] for j in range(count)]
    if fraction is None:
        return Plan(rates, weights=weights)
    lengths = TrustRadius(fraction, grouping).lengths(grouping.norms(grouping.parameters), bounded=True)
    return Plan(rates, per_entry(lengths, count), weights)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("fraction", [None, 0.1, 1e9])
def test_it_is_the_combined_step(count: int, fraction: float | None) -> None:
    _, grouping, directions, rates = _setting(count)
    plan = _plan(fraction, grouping, rates, count)
    twin = copy.deepcopy(list(grouping.parameters))
    before = copy.deepcopy(directions)
    assert bool(subtract_finite(twin, _combined(directions, _effective(directions, plan, grouping)[0])))
    assert bool(take(directions, plan, grouping))
    torch.testing.assert_close(grouping.parameters, twin, rtol=1e-13, atol=1e-14)
    for old, new in zip(before, directions, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(old, new, strict=True)), "directions are only read"


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("fraction", [None, 0.1])
@pytest.mark.parametrize("where", ["a group", "a group at rate 0", "the second direction", "a rate"])
def test_what_is_not_finite_touches_nothing(bad: float, fraction: float | None, where: str) -> None:
    model, grouping, directions, rates = _setting(2)
    before = copy.deepcopy(list(model.parameters()))
    if where == "a rate":
        rates[3] = bad
    else:
        direction = directions[1 if where == "the second direction" else 0]
        direction[-1].view(-1)[1] = bad
        if where == "a group at rate 0":
            rates[-2] = 0.0
    plan = _plan(fraction, grouping, rates, 2)
    assert not bool(take(directions, plan, grouping))
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


def test_a_product_that_overflows_touches_nothing() -> None:
    model, grouping, directions, rates = _setting(1)
    before = copy.deepcopy(list(model.parameters()))
    directions[0][0].fill_(1e150)
    rates[0] = 1e300
    assert not bool(take(directions, Plan(rates), grouping))
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
