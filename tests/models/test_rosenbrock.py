"""Rosenbrock functions against their closed form."""

from __future__ import annotations

import pytest
import torch

from gnewton.partition import Partition

from .cases import NOTHING, build

FORMS = ("evens_odds", "pairs")
POINT = [-1.2, 1.0, 0.3, -0.7, 2.0, 0.1]
LIST = "[" + ",".join(map(str, POINT)) + "]"


@pytest.mark.parametrize("form", FORMS)
def test_value_and_gradient_are_the_closed_form(form: str) -> None:
    model = build(
        "rosenbrock",
        NOTHING,
        f"model.form={form}",
        "model.size=6",
        f"model.start={LIST}",
        "model.a=1.5",
        "model.b=20",
    )
    value = model(torch.zeros(()))
    value.backward()
    x, y = torch.tensor(POINT[0::2]), torch.tensor(POINT[1::2])
    assert value.shape == ()
    torch.testing.assert_close(value, ((x - 1.5) ** 2 + 20 * (x**2 - y) ** 2).sum())
    gradient = {name: p.grad for name, p in model.named_parameters()}
    by_x, by_y = 2 * (x - 1.5) + 80 * x * (x**2 - y), -40 * (x**2 - y)
    if form == "evens_odds":
        torch.testing.assert_close(gradient, {"odds": by_x, "evens": by_y})
    else:
        pairs = torch.stack([by_x, by_y], dim=1)
        torch.testing.assert_close(gradient, {f"pairs.{i}": pairs[i] for i in range(3)})


@pytest.mark.parametrize("form", FORMS)
def test_minimum_is_zero_with_zero_gradient(form: str) -> None:
    model = build("rosenbrock", NOTHING, f"model.form={form}", "model.a=2", "model.start=[2,4]")
    value = model()
    value.backward()
    assert value.item() == 0
    assert all(not p.grad.any() for p in model.parameters())


def test_partition_per_tensor_gives_two_groups_or_one_per_pair() -> None:
    assert Partition.per_tensor(build("rosenbrock", NOTHING, "model.form=evens_odds")).names == (
        "odds",
        "evens",
    )
    pairs = Partition.per_tensor(build("rosenbrock", NOTHING, "model.form=pairs"))
    assert [group.size for group in pairs] == [2] * 5


def test_short_start_is_repeated_for_every_pair() -> None:
    model = build("rosenbrock", NOTHING, "model.start=[3,-4]", "model.size=4")
    assert model.odds.tolist() == [3, 3]
    assert model.evens.tolist() == [-4, -4]
