"""An optimizer as an object: copies are refused at once, and ``state_dict`` is the way to save it."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from gnewton import KFAC, GroupedNewton
from gnewton.errors import InputError
from tests.optim.problems import advance, tanh_net


def newton(direction: Any) -> Callable[[nn.Module], Any]:
    return lambda model: GroupedNewton(model, cross_entropy, direction=direction, period=2)


BUILD: dict[str, Callable[[nn.Module], Any]] = {
    "grouped_newton": partial(GroupedNewton, loss_fn=cross_entropy),
    "adam direction": newton("adam"),
    "muon direction": newton("muon"),
    "two directions": newton({"now": "gradient", "mean": "average"}),
    "kfac direction": lambda model: GroupedNewton(
        model, cross_entropy, direction=lambda named: KFAC(model, params=named, kl_clip=None)
    ),
    "kfac": KFAC,
}


class Trainer:
    """Holds a model and its optimizer, as trainers do."""

    def __init__(self, model: nn.Module, optimizer: Any) -> None:
        self.model, self.optimizer = model, optimizer


COPIES: dict[str, Callable[[nn.Module, Any], Any]] = {
    "copy": lambda model, optimizer: copy.copy(optimizer),
    "deepcopy": lambda model, optimizer: copy.deepcopy(optimizer),
    "deepcopy with its model": lambda model, optimizer: copy.deepcopy((model, optimizer)),
    "deepcopy of a trainer": lambda model, optimizer: copy.deepcopy(Trainer(model, optimizer)),
    "deepcopy of a scheduler": lambda model, optimizer: copy.deepcopy(
        torch.optim.lr_scheduler.StepLR(optimizer, 1)
    ),
    "pickle": lambda model, optimizer: pickle.dumps(optimizer),
    "torch.save": lambda model, optimizer: torch.save({"optimizer": optimizer}, io.BytesIO()),
}


@pytest.mark.parametrize("attempt", COPIES)
@pytest.mark.parametrize("name", BUILD)
def test_copies_are_refused_in_one_line_and_change_nothing(name: str, attempt: str) -> None:
    model, twin = tanh_net(), tanh_net()
    optimizer, other = BUILD[name](model), BUILD[name](twin)
    advance(model, optimizer, 0, 3)
    advance(twin, other, 0, 3)
    kind = type(optimizer).__name__
    message = f"^{kind}: it is bound to its model and cannot be copied or pickled; build a new {kind} for "
    with pytest.raises(InputError, match=message):
        COPIES[attempt](model, optimizer)
    advance(model, optimizer, 3, 5)
    advance(twin, other, 3, 5)
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", BUILD)
def test_a_copy_of_the_model_goes_on_from_the_saved_state(name: str) -> None:
    model = tanh_net()
    optimizer = BUILD[name](model)
    advance(model, optimizer, 0, 5)
    twin = copy.deepcopy(model)
    other = BUILD[name](twin)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=False))
    advance(model, optimizer, 5, 12)
    advance(twin, other, 5, 12)
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a, b)
