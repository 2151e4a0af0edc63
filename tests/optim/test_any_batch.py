"""The optimizers on models with several inputs, or batches of a form of their own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from gnewton import GroupedNewton
from gnewton.errors import InputError
from gnewton.optim.averaging import StaticAveraging
from tests import batches
from tests.batches import Case


def train(case: Case, optimizer: Any, steps: int, *, with_batch: bool = True) -> list[float]:
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = batches.training_loss(case)
        loss.backward()
        optimizer.step(**({"batch": case.batch} if with_batch else {}))
        losses.append(float(loss.detach()))
    return losses


def newton(case: Case, **options: Any) -> GroupedNewton:
    settings: dict[str, Any] = {"period": 3, "forward": case.forward} | options
    return GroupedNewton(case.model, case.loss_fn, **settings)


@pytest.mark.parametrize("name", batches.NAMES)
def test_the_loss_falls_and_the_rates_are_those_of_the_reference_engine(name: str) -> None:
    fast, slow = batches.make(name), batches.make(name)
    if name == "penalty":  # the loss of either reads the weights of its own model
        assert fast.loss_fn is not slow.loss_fn
    one, other = newton(fast, engine="tangent"), newton(slow, engine="reference")
    losses, expected = train(fast, one, 12), train(slow, other, 12)
    assert losses[-1] < 0.98 * losses[0]
    assert losses == pytest.approx(expected, rel=1e-7)
    assert one.rates == pytest.approx(other.rates, rel=1e-5)
    assert max(one.rates.values()) > 0


@pytest.mark.parametrize("name", ["mask", "own loss", "penalty", "dataclass"])
def test_two_directions_share_a_summary(name: str) -> None:
    fast, slow = batches.make(name), batches.make(name)
    pair = {"gradient": "gradient", "average": "average"}
    one, other = (
        newton(fast, direction=pair, engine="tangent"),
        newton(slow, direction=pair, engine="reference"),
    )
    losses, expected = train(fast, one, 8), train(slow, other, 8)
    assert min(losses) < losses[0]
    assert losses == pytest.approx(expected, rel=1e-6)


class Loader:
    """Batches of a form of their own, as a data loader yields them."""

    def __init__(self, batch: Any, count: int) -> None:
        self._batch, self._count = batch, count

    def __iter__(self) -> Iterator[Any]:
        for _ in range(self._count):
            yield self._batch


@pytest.mark.parametrize("name", ["list", "dict", "own loss", "dataclass"])
def test_curvature_batches_take_the_same_forms(name: str) -> None:
    case, twin = batches.make(name), batches.make(name)
    optimizer = newton(case, curvature=Loader(case.batch, 2), averaging=StaticAveraging(3))
    expected = train(twin, newton(twin, averaging=StaticAveraging(1)), 8)
    assert train(case, optimizer, 8, with_batch=False) == pytest.approx(expected, rel=1e-9)


def test_ten_lines_train_a_model_that_returns_its_own_loss() -> None:
    case = batches.make("own loss")
    model, batch = case.model, case.batch
    optimizer = GroupedNewton(
        model, lambda outputs, batch: outputs.loss, forward=lambda model, batch: model(**batch)
    )
    for _ in range(100):
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        optimizer.step(batch=batch)
    assert float(loss.detach()) < 0.5


WRONG: dict[str, tuple[Any, str]] = {
    "a dictionary": ({"x": torch.zeros(3)}, "batch: a batch must be .inputs, targets., not a dict"),
    "three": ((torch.zeros(3),) * 3, "batch: a batch must be .inputs, targets., not a tuple of 3"),
    "inputs alone": (torch.zeros(2, 4), "not a Tensor; several inputs go as .*any other batch with forward="),
}


@pytest.mark.parametrize("name", WRONG)
def test_other_batches_need_a_forward(name: str) -> None:
    batch, message = WRONG[name]
    case = batches.make("tuple")
    optimizer = newton(case)
    batches.training_loss(case).backward()
    with pytest.raises(InputError, match=message):
        optimizer.step(batch=batch)


def test_a_curvature_source_of_inputs_and_targets_is_no_batch() -> None:
    case = batches.make("tuple")
    x, y = torch.zeros(2, 3), torch.zeros(2)
    optimizer = newton(case, curvature=(x, y))
    batches.training_loss(case).backward()
    with pytest.raises(InputError, match="curvature: a batch must be .inputs, targets., not a Tensor"):
        optimizer.step()


def test_the_batch_is_not_touched() -> None:
    case = batches.make("user dict")
    before = {key: value.clone() for key, value in case.batch.items()}
    train(case, newton(case), 4)
    assert all(torch.equal(case.batch[key], value) for key, value in before.items())
    assert all(not isinstance(leaf, Tensor) or not leaf.requires_grad for leaf in pytree.tree_leaves(before))
