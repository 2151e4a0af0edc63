"""λ_1 that stays, or rises while the objective falls: the trend against statistics, the rule by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import linregress
from torch import nn

from gnewton import GroupedNewton
from gnewton.errors import InputError
from gnewton.optim.controllers import Constant, Progress, decay_exponent, trend
from gnewton.optim.rate_rule import RateUpdate
from tests.optim.problems import classification, take_step, tanh_net


@pytest.mark.parametrize("seed", range(5))
def test_the_trend_is_the_statistic_of_the_slope(seed: int) -> None:
    values = torch.randn(8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).tolist()
    fit = linregress(range(8), values)
    assert trend(values) == pytest.approx(fit.slope / fit.stderr, rel=1e-10)


def test_trends_without_scatter() -> None:
    assert trend([3.0, 2.0, 1.0, 0.0]) == -math.inf
    assert trend([1.0, 2.0, 3.0, 4.0]) == math.inf
    assert trend([1.0] * 5) == 0.0
    assert trend([1.0, math.nan, 1.0, 0.0]) == 0.0
    assert trend([1.0, math.inf, 1.0, 0.0]) == 0.0


@pytest.mark.parametrize("power", [-600, 600])
def test_a_trend_has_no_scale(power: int) -> None:
    """The squares of these losses leave the range of floats."""
    values = [3.0, 1.0, 2.0, 0.5]
    assert trend([math.ldexp(value, power) for value in values]) == trend(values)


def follow(rule: Progress, objectives: list[float]) -> list[float]:
    for objective in objectives:
        rule.observe(objective)
    return [rule.step_size]


def test_constant_moves_nothing() -> None:
    rule = Constant()
    for objective in (1.0, 0.5, 2.0, math.nan):
        rule.observe(objective)
    assert rule.step_size == 1.0
    assert rule.state_dict() == {"step_size": 1.0}


def test_it_rises_while_the_objective_falls_and_falls_when_it_rests() -> None:
    rule = Progress(2.0, 0.5, highest=100.0, lowest=0.01, window=4, exponent=0.0)
    rule.begin(1.0, 10)
    assert follow(rule, [9.0, 8.0, 7.0]) == [8.0]
    assert follow(rule, [6.0]) == [16.0]
    assert trend([8.0, 7.0, 6.0, 7.0]) == pytest.approx(-1.155, abs=1e-3)
    assert follow(rule, [7.0]) == [16.0], "a trend between the two thresholds"
    assert follow(rule, [8.0, 9.0]) == [4.0]


@pytest.mark.parametrize("seed", range(3))
def test_the_exponent_is_that_of_a_power_law(seed: int) -> None:
    values = torch.rand(6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).add(0.1)
    numbers = torch.arange(15, 21, dtype=torch.float64)
    assert decay_exponent((3 * numbers**-0.7).tolist(), 20) == pytest.approx(0.7, rel=1e-12)
    fit = linregress(numbers.log().numpy(), values.log().numpy())
    assert decay_exponent(values.tolist(), 20) == pytest.approx(-fit.slope, rel=1e-10)


def test_exponents_of_values_without_one() -> None:
    assert decay_exponent([1.0, -1.0], 2) == math.inf
    assert decay_exponent([1.0, 0.0], 2) == math.inf
    assert decay_exponent([1.0], 1) == -math.inf
    assert decay_exponent([1.0, math.inf], 2) == -math.inf
    assert decay_exponent([1.0, math.nan], 2) == -math.inf


@pytest.mark.parametrize(("power", "rises"), [(0.4, False), (0.6, True)])
def test_it_rises_only_while_the_objective_falls_fast_enough(power: float, rises: bool) -> None:
    rule = Progress(first_rises=0)
    rule.begin(1.0, 10)
    follow(rule, [2.0])
    assert rule.step_size == 1.0, "one value has no exponent"
    follow(rule, [2 * n**-power for n in range(2, 31)])
    assert rule.step_size == (4.0 if rises else 1.0)


def test_below_the_minimiser_a_sure_fall_is_enough() -> None:
    rule = Progress(first_rises=0)
    rule.begin(0.3, 10)
    follow(rule, [2 * n**-0.4 for n in range(1, 31)])
    assert 1 <= 0.3 * rule.step_size < 1.2


@pytest.mark.parametrize(("first_rises", "along_kfac"), [(None, False), (None, True), (2, True), (0, False)])
def test_first_rises(first_rises: int | None, along_kfac: bool) -> None:
    rule = Progress(first_rises=first_rises)
    rule.along_kfac = along_kfac
    rule.begin(1.0, 10)
    expected = first_rises if first_rises is not None else 0 if along_kfac else 3
    assert follow(rule, [1.0, 1.1, 1.2]) == [pytest.approx(1.2**expected)]


@pytest.mark.parametrize(
    ("direction", "along_kfac"), [("pair", False), ("kfac", True), ({"g": "gradient", "k": "kfac"}, True)]
)
def test_an_optimizer_tells_it_whether_kfac_is_the_direction(direction: Any, along_kfac: bool) -> None:
    rule = Progress()
    GroupedNewton(tanh_net(), F.cross_entropy, direction=direction, controller=rule)
    assert rule.along_kfac == along_kfac


def test_the_window_grows_and_the_steps_shrink_with_it() -> None:
    rule = Progress(2.0, 0.5, highest=1e9, window=4)
    rule.begin(1.0, 10)
    follow(rule, [float(-k) for k in range(23)])
    before = rule.step_size
    follow(rule, [-23.0])
    assert rule._values == [float(-k) for k in range(16, 24)], "a third of 24"
    assert rule.step_size / before == pytest.approx(2.0 ** (4 / 8))


@pytest.mark.parametrize("step_size", [0.3, 1.0, 3.0, 30.0])
def test_the_bounds_are_those_of_the_step_size_itself(step_size: float) -> None:
    up, down = Progress(), Progress()
    up.begin(step_size, 10)
    down.begin(step_size, 10)
    follow(up, [float(-k) for k in range(100)])
    follow(down, [0.0] * 100)
    assert up.step_size * step_size == pytest.approx(max(4.0, step_size))
    assert down.step_size * step_size == pytest.approx(min(0.3, step_size))


@pytest.mark.parametrize(("period", "updates"), [(1, 10), (3, 4), (7, 2), (10, 1), (100, 1)])
def test_a_value_is_the_mean_of_ten_steps(period: int, updates: int) -> None:
    rule = Progress(2.0, 0.5, highest=1e9)
    rule.begin(1.0, period)
    follow(rule, [0.0] * (updates - 1))
    assert rule.step_size == 1.0
    follow(rule, [float(updates)])
    assert (rule.step_size, rule._values) == (2.0, [1.0])


def test_a_restored_rule_goes_on() -> None:
    rule, other = Progress(), Progress()
    for controller in (rule, other):
        controller.begin(1.0, 3)
    follow(rule, [5.0, 4.0, 4.5, 3.0, 3.5, 2.0] * 4)
    other.load_state_dict(rule.state_dict())
    rest = [2.0, 2.5, 3.0] * 9
    assert follow(rule, rest) == follow(other, rest)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rise": 1.0}, "rise=1.0: must be a finite number > 1"),
        ({"fall": 1.0}, "fall=1.0: must be a finite number > 0 and < 1"),
        ({"highest": 0.0}, "highest=0.0: must be a finite number > 0"),
        ({"lowest": 5.0}, "lowest=5.0: must be > 0 and <= highest=4.0"),
        ({"window": 3}, "window=3: must be an integer >= 4"),
        ({"exponent": -1.0}, "exponent=-1.0: must be a finite number >= 0"),
        ({"first_rises": 4}, "first_rises=4: must be an integer from 0 to 3"),
    ],
)
def test_bad_values_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Progress(**options)


def test_it_is_what_an_optimizer_has_by_default() -> None:
    model, updates = tanh_net(), list[RateUpdate]()
    options: dict[str, Any] = {"direction": "adam", "period": 1}
    optimizer = GroupedNewton(model, F.cross_entropy, on_update=updates.append, **options)
    batch = classification(60)
    for _ in range(60):
        take_step(model, optimizer, batch)
    assert updates[0].step_size == [1.0] * 6
    assert updates[-1].step_size[0] == pytest.approx(1.2**6)


def test_where_no_summary_is_finite_the_first_radius_is_gone(caplog: pytest.LogCaptureFixture) -> None:
    """torch's second derivative of |x|^1.5 is NaN at 0: here at the differences of each sample to itself."""
    model = nn.Linear(4, 2).double()
    inputs = classification(20)[0]

    def loss_fn(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        apart = [(x[:, None] - x).abs().pow(1.5).sum(-1) for x in (outputs, targets)]
        return (apart[0] - apart[1]).square().mean()

    updates = list[RateUpdate]()
    optimizer = GroupedNewton(model, loss_fn, direction="adam", on_update=updates.append)
    targets = inputs[:, :2] * 3
    losses = []
    for _ in range(100):
        before = model.weight.detach().clone()
        losses.append(take_step(model, optimizer, (inputs, targets), loss_fn))
        assert (model.weight - before).norm() <= 0.0101 * before.norm()
    assert losses[-1] < 0.8 * losses[0]
    assert caplog.text.count("a summary that is not finite") == 1
    assert updates[0].solved.rates.tolist() == [group["rate"] for group in optimizer.param_groups]
