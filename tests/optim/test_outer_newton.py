"""The outer step on the displacement of an inner optimizer, in its limits and against closed forms."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gnewton import Partition
from gnewton.errors import InputError
from gnewton.optim.averaging import ExponentialAveraging, StaticAveraging
from gnewton.optim.directions import muon_with_adamw
from gnewton.optim.outer_newton import OuterNewton
from gnewton.optim.rate_update import RateUpdate
from tests.optim.problems import NOTHING, Quadratic, Stream, classification, tanh_net, value

SGD = partial(torch.optim.SGD, lr=0.02, momentum=0.9)
WIDE: dict[str, Any] = {"lowest": -1e9, "highest": 1e9, "internal_damping": 0.0}


def take_step(model: nn.Module, optimizer: Any, batch: Any, loss_fn: Any) -> None:
    optimizer.zero_grad()
    loss_fn(model(batch[0]), batch[1]).backward()
    optimizer.step(batch=batch) if isinstance(optimizer, OuterNewton) else optimizer.step()


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("normalise", [False, True])
def test_one_group_ends_at_the_best_point_of_the_line_it_came_along(decay: float, normalise: bool) -> None:
    model = Quadratic(5)
    inner = partial(torch.optim.SGD, lr=0.01, momentum=0.5, weight_decay=decay)
    optimizer = OuterNewton(
        model, value, Partition.single(model), inner=inner, period=4, normalise=normalise, **WIDE
    )
    twin = Quadratic(5)
    reference = inner(list(twin.parameters()))
    for _ in range(3):
        start = flat(twin)
        for _ in range(4):
            take_step(model, optimizer, NOTHING, value)
            take_step(twin, reference, NOTHING, value)
        w = start - flat(twin)
        a = model.a + decay * torch.eye(5, dtype=torch.float64)
        rate = (a @ flat(twin) - model.b) @ w / (w @ a @ w)
        expected = flat(twin) - rate * w
        torch.testing.assert_close(flat(model), expected, rtol=1e-10, atol=1e-12)
        assert list(optimizer.rates.values()) == pytest.approx([float(rate)], rel=1e-9)
        with torch.no_grad():
            for p, x in zip(twin.x, expected, strict=True):
                p.copy_(x)


def test_a_group_for_each_scalar_ends_at_the_minimum() -> None:
    model = Quadratic(4)
    optimizer = OuterNewton(model, value, inner=partial(torch.optim.Adam, lr=0.01), period=3, **WIDE)
    for _ in range(3):
        take_step(model, optimizer, NOTHING, value)
    torch.testing.assert_close(flat(model), model.solution(), rtol=1e-8, atol=1e-8)


def test_between_outer_steps_it_is_the_inner_optimizer() -> None:
    model, twin = tanh_net(), tanh_net()
    optimizer = OuterNewton(model, F.cross_entropy, inner=SGD, period=100)
    reference = SGD(twin.parameters())
    for step in range(20):
        batch = classification(10, seed=step)
        take_step(model, optimizer, batch, F.cross_entropy)
        take_step(twin, reference, batch, F.cross_entropy)
    assert torch.equal(flat(model), flat(twin))


def test_a_rate_of_minus_one_takes_the_displacement_back() -> None:
    """Along steps far too long every rate is below the bound of -1, near which it is cut."""
    model = Quadratic(4)
    start = flat(model)
    inner = partial(torch.optim.SGD, lr=10.0)
    updates: list[RateUpdate] = []
    optimizer = OuterNewton(
        model,
        value,
        Partition.single(model),
        inner=inner,
        period=2,
        lowest=-1.0,
        internal_damping=0.0,
        on_update=updates.append,
    )
    take_step(model, optimizer, NOTHING, value)
    far = flat(model)
    take_step(model, optimizer, NOTHING, value)
    assert (far - start).norm() > 10
    assert all(-1 <= rate < -0.9 for rate in optimizer.rates.values())
    assert (updates[0].step, updates[0].names) == (2, ("all",))


@pytest.mark.parametrize(("lowest", "highest"), [(-0.5, 0.001), (0.5, 2.0), (-1.0, -0.9)])
def test_rates_stay_within_their_bounds(lowest: float, highest: float) -> None:
    model = tanh_net()
    optimizer = OuterNewton(
        model, F.cross_entropy, inner=SGD, period=2, lowest=lowest, highest=highest, step_size=0.5
    )
    seen = set()
    for step in range(20):
        take_step(model, optimizer, classification(20, seed=step), F.cross_entropy)
        if step % 2:
            assert all(lowest / 2 - 1e-12 <= rate <= highest / 2 + 1e-12 for rate in optimizer.rates.values())
            seen.update(round(rate, 9) for rate in optimizer.rates.values())
    assert seen & {lowest / 2, highest / 2}


def test_maximize_is_the_mirror_image() -> None:
    model, twin = tanh_net(), tanh_net()

    def gain(outputs: Tensor, targets: Tensor) -> Tensor:
        return -F.cross_entropy(outputs, targets)

    down = OuterNewton(model, F.cross_entropy, inner=SGD, period=3)
    up = OuterNewton(twin, gain, inner=partial(SGD, maximize=True), period=3)
    for step in range(12):
        take_step(model, down, classification(20, seed=step), F.cross_entropy)
        take_step(twin, up, classification(20, seed=step), gain)
    assert up.rates == pytest.approx(down.rates, rel=1e-9)
    torch.testing.assert_close(flat(model), flat(twin), rtol=1e-9, atol=1e-12)


INNER = {
    "sgd": SGD,
    "nadam": partial(torch.optim.NAdam, lr=0.01),
    "adamw": partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1),
    "muon": partial(muon_with_adamw, lr=0.01),
}


@pytest.mark.parametrize("name", INNER)
@pytest.mark.parametrize("averaging", [None, lambda: ExponentialAveraging(0.9), lambda: StaticAveraging(2)])
def test_a_restored_state_continues_bit_for_bit(name: str, averaging: Any) -> None:
    def build(model: nn.Module) -> OuterNewton:
        average = averaging() if averaging is not None else None
        return OuterNewton(
            model,
            F.cross_entropy,
            inner=INNER[name],
            period=4,
            averaging=average,
            proximal=0.5,
            curvature=Stream(),
        )

    def advance(model: nn.Module, optimizer: OuterNewton, first: int, last: int) -> None:
        for step in range(first, last):
            take_step(model, optimizer, classification(20, seed=step), F.cross_entropy)

    straight, model, resumed = tanh_net(), tanh_net(), tanh_net(seed=9)
    advance(straight, build(straight), 0, 18)
    optimizer = build(model)
    advance(model, optimizer, 0, 10)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    resumed.load_state_dict(saved[0])
    other = build(resumed)
    other.load_state_dict(saved[1])
    assert other.rates == optimizer.rates
    advance(resumed, other, 10, 18)
    assert torch.equal(flat(resumed), flat(straight))


def test_schedulers_act_on_the_inner_learning_rate() -> None:
    model = tanh_net()
    optimizer = OuterNewton(model, F.cross_entropy, inner=SGD)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    take_step(model, optimizer, classification(5), F.cross_entropy)
    scheduler.step()
    assert optimizer.inner.param_groups[0]["lr"] == pytest.approx(0.01)
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    scheduler.step()
    assert optimizer.inner.param_groups[0]["lr"] == pytest.approx(0.005)


def test_a_summary_that_is_not_finite_makes_no_outer_step() -> None:
    model, twin = tanh_net(), tanh_net()
    optimizer = OuterNewton(model, F.cross_entropy, inner=SGD, period=2)
    reference = SGD(twin.parameters())
    inputs, targets = classification(10)
    for _ in range(2):
        take_step(twin, reference, (inputs, targets), F.cross_entropy)
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        optimizer.step(batch=(inputs * float("nan"), targets))
    assert list(optimizer.rates.values()) == [0.0] * 6
    assert torch.equal(flat(model), flat(twin))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"period": 0}, "period=0: must be an integer >= 1"),
        ({"step_size": 0.0}, "step_size=0.0: must be a finite number > 0"),
        ({"lowest": 5.0}, "lowest=5.0, highest=5.0: must be finite, lowest < highest"),
        ({"averaging": StaticAveraging(2)}, "several batches at each update: needs curvature="),
    ],
)
def test_values_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        OuterNewton(tanh_net(), F.cross_entropy, inner=SGD, **settings)


def test_misuse_is_refused() -> None:
    model = tanh_net()
    optimizer = OuterNewton(model, F.cross_entropy, inner=SGD, period=1)
    F.cross_entropy(model(classification(5)[0]), classification(5)[1]).backward()
    with pytest.raises(InputError, match="pass batch="):
        optimizer.step()
    with pytest.raises(InputError, match="build a new OuterNewton"):
        optimizer.add_param_group({"params": []})
    with pytest.raises(InputError, match="not written by OuterNewton"):
        optimizer.load_state_dict(torch.optim.SGD(model.parameters(), lr=1).state_dict())
    single = OuterNewton(model, F.cross_entropy, Partition.single(model), inner=SGD)
    with pytest.raises(InputError, match="its groups are"):
        optimizer.load_state_dict(single.state_dict())
