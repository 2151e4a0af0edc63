"""What each average contains at each update, against the plain definition."""

from __future__ import annotations

import pytest
import torch

from gnewton.errors import InputError
from gnewton.optim.averaging import (
    Averaging,
    ExponentialAveraging,
    NoAveraging,
    StaticAveraging,
    UniformAveraging,
)


def series(count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(4, generator=generator, dtype=torch.float64) for _ in range(count)]


def test_none_returns_the_present_value_as_a_copy() -> None:
    value = torch.ones(3, dtype=torch.float64)
    returned = NoAveraging().update(value)
    value.zero_()
    assert returned.tolist() == [1, 1, 1]


@pytest.mark.parametrize("coefficient", [0.0, 0.5, 0.95])
def test_exponential_is_the_weighted_mean(coefficient: float) -> None:
    average, values = ExponentialAveraging(coefficient), series(7)
    for k in range(len(values)):
        weights = torch.tensor([coefficient ** (k - j) for j in range(k + 1)], dtype=torch.float64)
        expected = (torch.stack(values[: k + 1]) * weights[:, None]).sum(0) / weights.sum()
        torch.testing.assert_close(average.update(values[k]), expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize("period", [1, 2, 3, 5])
def test_uniform_covers_between_one_and_two_periods(period: int) -> None:
    average, values = UniformAveraging(period), series(4 * period + 1)
    for k in range(len(values)):
        # swaps happen after updates period, 2·period, …; the mean in use began one swap earlier
        begin = max(0, (k // period - 1) * period)
        expected = torch.stack(values[begin : k + 1]).mean(0)
        torch.testing.assert_close(average.update(values[k]), expected, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("batches", [1, 2, 5])
def test_static_is_the_mean_of_the_batches_of_one_update(batches: int) -> None:
    average, values = StaticAveraging(batches), series(4 * batches)
    for k in range(len(values)):
        begin = (k // batches) * batches
        expected = torch.stack(values[begin : k + 1]).mean(0)
        torch.testing.assert_close(average.update(values[k]), expected, rtol=1e-14, atol=1e-16)


@pytest.mark.parametrize(
    "build",
    [NoAveraging, lambda: ExponentialAveraging(0.9), lambda: UniformAveraging(3), lambda: StaticAveraging(3)],
)
def test_inputs_are_not_aliased_and_state_continues_exactly(build: type[Averaging]) -> None:
    straight, first, values = build(), build(), series(9)
    expected = [straight.update(value.clone()) for value in values]
    averages = []
    for value in values[:4]:
        given = value.clone()
        averages.append(first.update(given).clone())
        given.fill_(float("nan"))
    second = build()
    second.load_state_dict(first.state_dict())
    averages += [second.update(value) for value in values[4:]]
    for one, other in zip(expected, averages, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("build", [lambda: ExponentialAveraging(1.0), lambda: ExponentialAveraging(-0.1)])
def test_exponential_refuses_a_coefficient_out_of_range(build: type[Averaging]) -> None:
    with pytest.raises(InputError, match="coefficient=.*>= 0 and < 1"):
        build()


def test_uniform_refuses_a_period_of_zero() -> None:
    with pytest.raises(InputError, match="period=0: must be an integer >= 1"):
        UniformAveraging(0)


def test_static_refuses_no_batches() -> None:
    with pytest.raises(InputError, match="batches=0: must be an integer >= 1"):
        StaticAveraging(0)
