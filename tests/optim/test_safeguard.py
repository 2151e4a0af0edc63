"""An update whose loss has left its band is undone; one whose data have changed is not."""

from __future__ import annotations

import copy
import logging
import math
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gnewton import GroupedNewton
from gnewton.errors import OutOfMemory
from gnewton.optim.controllers import Constant
from gnewton.optim.rate_rule import RateUpdate
from gnewton.optim.safeguard import FALL, WINDOW, Safeguard
from gnewton.summary.result import SummaryError
from tests.optim.problems import classification, flat, take_step, tanh_net

# --- the band ----------------------------------------


def guard(*losses: float) -> Safeguard:
    safeguard = Safeguard([torch.zeros(2)])
    for loss in losses:
        safeguard.keep(loss)
    return safeguard


def test_nothing_is_outside_before_the_first_loss_but_what_is_not_finite() -> None:
    assert not guard().outside(1e9)
    assert guard().outside(math.nan)
    assert guard().outside(math.inf)


def test_the_edge_is_four_deviations_above_the_mean() -> None:
    losses = [1.0, 1.4, 0.8, 1.2]
    mean, deviation = 1.1, float(torch.tensor(losses).std())
    safeguard = guard(*losses)
    assert not safeguard.outside(mean + 3.999 * deviation)
    assert safeguard.outside(mean + 4.001 * deviation)
    assert not safeguard.outside(-1e9)


def test_only_the_last_losses_count() -> None:
    safeguard = guard(100.0, *[1.0] * WINDOW)
    assert safeguard.outside(1.5)
    assert not safeguard.outside(1.39)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_band_has_the_scale_of_the_loss(scale: float, sign: float) -> None:
    safeguard = guard(*(sign * scale * loss for loss in (1.0, 1.1, 0.9)))
    assert safeguard.outside(sign * scale + scale)
    assert not safeguard.outside(sign * scale + 0.2 * scale)


def test_a_slow_rise_ends_at_three_times_the_first_loss() -> None:
    safeguard, loss = guard(1.0), 1.0
    while not safeguard.outside(loss) and loss < 1e3:
        safeguard.keep(loss)
        loss *= 1.15
    assert loss < 3.5


def test_rejections_halve_the_step_size_which_comes_back() -> None:
    safeguard = guard(1.0)
    for _ in range(3):
        safeguard.reject()
    assert (safeguard.scale, safeguard.rejected) == (FALL**3, 3)
    for _ in range(30):
        safeguard.keep(1.0)
    assert safeguard.scale == 1.0
    for _ in range(100):
        safeguard.reject()
    assert safeguard.scale > 1e-4


# --- in a training ----------------------------------------


def trained(steps: int, **options: Any) -> tuple[nn.Module, GroupedNewton, list[RateUpdate]]:
    model, updates = tanh_net(), list[RateUpdate]()
    optimizer = GroupedNewton(model, F.cross_entropy, period=3, on_update=updates.append, **options)
    for step in range(steps):
        take_step(model, optimizer, classification(30, seed=step % 3))
    return model, optimizer, updates


def test_parameters_that_were_thrown_away_come_back() -> None:
    model, optimizer, updates = trained(30, controller=Constant())
    guard = optimizer._updater.safeguard
    assert guard is not None
    assert guard.kept is not None
    kept = torch.cat([p.flatten() for p in guard.kept])
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(30.0)
    take_step(model, optimizer, classification(30, seed=0))
    assert torch.equal(flat(model), kept), "no step is taken after a rejection"
    assert optimizer.rejected == updates[-1].rejected == 1
    assert updates[-1].step_size == [0.5] * 6
    for step in range(31, 40):
        take_step(model, optimizer, classification(30, seed=step % 3))
    assert not torch.equal(flat(model), kept)
    assert optimizer.rejected == 1


def test_new_labels_are_no_reason_to_go_back() -> None:
    """The loss jumps at the kept parameters too, so that the band starts anew."""
    model, optimizer, _ = trained(120)
    inputs, targets = classification(30, seed=0)
    permuted = (targets + 1) % 3
    jump = float(F.cross_entropy(model(inputs), permuted).detach())
    assert jump > 2 * float(F.cross_entropy(model(inputs), targets).detach())
    for _ in range(150):
        take_step(model, optimizer, (inputs, permuted))
    assert optimizer.rejected <= 1
    assert float(F.cross_entropy(model(inputs), permuted).detach()) < 0.5 * jump


def test_a_gradient_that_stays_nan_ends_at_the_last_good_parameters(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model, optimizer, _ = trained(30)
    batch = classification(30)
    with caplog.at_level(logging.WARNING):
        for _ in range(12):
            take_step(model, optimizer, batch, poison=math.nan)
    assert bool(flat(model).isfinite().all())
    assert optimizer.rejected >= 1
    said = [r.getMessage() for r in caplog.records if "withheld" in r.getMessage()]
    assert len(said) == 1, "one warning"
    for step in range(30):
        take_step(model, optimizer, classification(30, seed=step % 3))
    assert list(optimizer.rates.values()) != [0.0] * 6


@pytest.mark.parametrize("position", [31, 33, 35])
def test_a_resumed_training_goes_on_bit_for_bit_through_a_rejection(position: int) -> None:
    def advance(model: nn.Module, optimizer: GroupedNewton, first: int, last: int) -> None:
        for step in range(first, last):
            if step == 32:
                with torch.no_grad():
                    for p in model.parameters():
                        p.mul_(30.0)
            take_step(model, optimizer, classification(30, seed=step % 3))

    model, optimizer, _ = trained(30)
    advance(model, optimizer, 30, position)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    advance(model, optimizer, position, 50)
    resumed = tanh_net(seed=9)
    resumed.load_state_dict(saved[0])
    other = GroupedNewton(resumed, F.cross_entropy, period=3)
    other.load_state_dict(saved[1])
    advance(resumed, other, position, 50)
    assert optimizer.rejected == other.rejected == 1
    assert torch.equal(flat(model), flat(resumed))


def test_without_it_nothing_is_kept() -> None:
    model, optimizer, _ = trained(9, safeguard=False)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(30.0)
    before = flat(model).clone()
    take_step(model, optimizer, classification(30))
    assert not torch.equal(flat(model), before)
    assert optimizer.rejected == 0
    assert optimizer.state_dict()["grouped_newton"]["safeguard"] is None


# --- an update never ends a training ----------------------------------------


@pytest.mark.parametrize(
    "error", [SummaryError("two gradients disagree"), OutOfMemory("no memory"), RuntimeError("x")]
)
def test_a_summary_that_fails_leaves_the_rates_as_they_are(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    model, optimizer, updates = trained(6)
    rates, before = optimizer.rates, flat(model).clone()

    def fail(*arguments: Any) -> Any:
        raise error

    optimizer._updater._measurer.measure = fail  # type: ignore[method-assign]
    with caplog.at_level(logging.WARNING):
        for step in range(6):
            take_step(model, optimizer, classification(30, seed=step))
    assert optimizer.rates == rates
    assert not torch.equal(flat(model), before)
    assert updates[-1].solved.solution.status == "invalid_input"
    said = [record.getMessage() for record in caplog.records if record.name == "gnewton.optim.grouped_newton"]
    assert [str(error) in text for text in said] == [True]


def test_an_engine_that_was_asked_for_by_name_raises() -> None:
    model, optimizer, _ = trained(6, engine="tangent")

    def fail(*arguments: Any) -> Any:
        raise SummaryError("two gradients disagree")

    optimizer._updater._measurer.measure = fail  # type: ignore[method-assign]
    with pytest.raises(SummaryError, match="two gradients disagree"):
        take_step(model, optimizer, classification(30))


def test_a_first_update_without_a_summary_is_an_error() -> None:
    """There are no rates yet: a training that stands still in silence helps nobody."""
    model = tanh_net()
    optimizer = GroupedNewton(model, F.cross_entropy)

    def fail(*arguments: Any) -> Any:
        raise SummaryError("two gradients disagree")

    optimizer._updater._measurer.measure = fail  # type: ignore[method-assign]
    with pytest.raises(SummaryError):
        take_step(model, optimizer, classification(30))


# --- lengths ----------------------------------------


@pytest.mark.parametrize("along", ["fresh", "step"])
def test_no_step_between_updates_is_longer_than_the_one_that_was_measured(along: str) -> None:
    """A momentum that fills from nothing grows tenfold while one set of rates is in force."""
    model = tanh_net()
    optimizer = GroupedNewton(
        model,
        F.cross_entropy,
        direction=partial(torch.optim.SGD, lr=1.0, momentum=0.9),
        along=along,
        period=50,
        cap=None,
        step_size=0.3,
    )
    lengths = []
    for _ in range(50):
        before = [p.detach().clone() for p in model.parameters()]
        take_step(model, optimizer, classification(30))
        lengths.append(
            [float((p.detach() - b).norm()) for p, b in zip(model.parameters(), before, strict=True)]
        )
    for first, *later in zip(*lengths, strict=True):
        assert max(later) <= first * (1 + 1e-9)
