"""The ceiling on the training loss: scale, sign, spikes, and the losses that decide."""

from __future__ import annotations

import math

import pytest
import torch

from gnewton.training.faults import LossCeiling


def ceiling(start: float, losses: list[float], epoch: int = 20, factor: float | None = 10.0) -> LossCeiling:
    rule = LossCeiling(factor, epoch)
    rule.start = start
    rule.record(losses)
    return rule


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_a_loss_that_stays_high_is_far_above(scale: float) -> None:
    rule = ceiling(2 * scale, [21 * scale] * 20)
    assert rule.ceiling() == pytest.approx(20 * scale)
    assert rule.is_exceeded()
    assert rule.is_exceeded_for_long()
    assert not ceiling(2 * scale, [19 * scale] * 20).is_exceeded()


def test_within_a_run_an_epoch_must_be_over() -> None:
    rule = ceiling(1.0, [100.0] * 19)
    assert rule.is_exceeded()
    assert not rule.is_exceeded_for_long()


def test_spikes_decide_nothing() -> None:
    losses = [1.0] * 20
    losses[3] = losses[11] = losses[19] = 1e30  # the mean is far above
    rule = ceiling(1.0, losses)
    assert not rule.is_exceeded()
    assert not rule.is_exceeded_for_long()


def test_a_loss_that_has_come_back_is_not_refused() -> None:
    rule = ceiling(1.0, [100.0] * 14 + [1.0] * 6)
    assert not rule.is_exceeded()
    assert not rule.is_exceeded_for_long()


def test_losses_below_zero() -> None:
    assert ceiling(-3.0, [-3.0] * 20).ceiling() == pytest.approx(24.0)
    assert ceiling(-3.0, [25.0] * 20).is_exceeded_for_long()
    assert not ceiling(-3.0, [23.0] * 20).is_exceeded()


def test_a_start_near_zero_by_chance_gives_no_small_scale() -> None:
    rule = ceiling(1e-6, [-2.0, *([1.0] * 19)])
    assert rule.ceiling() == pytest.approx(18.0, rel=1e-5)
    assert not rule.is_exceeded_for_long()


@pytest.mark.parametrize("start", [0.0, math.nan, math.inf])
def test_a_start_without_a_scale_decides_nothing(start: float) -> None:
    assert not ceiling(start, [5.0] * 20).is_exceeded()


def test_without_a_factor_nothing_is_exceeded() -> None:
    rule = ceiling(1.0, [1e30] * 20, factor=None)
    assert not rule.is_exceeded()
    assert not LossCeiling(None, 5).lacks_start
    assert LossCeiling(10.0, 5).lacks_start


def test_the_state_goes_on_bit_for_bit() -> None:
    losses = torch.rand(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64).tolist()
    whole, part, rest = (ceiling(0.01, values) for values in (losses, losses[:33], []))
    rest.load_state_dict(part.state_dict())
    rest.record(losses[33:])
    assert rest.describe(50, ended=False) == whole.describe(50, ended=False)
    assert torch.equal(rest.state_dict()["recent"], whole.state_dict()["recent"])
