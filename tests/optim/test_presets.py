"""``gnewton.preset``: the same settings as the YAML files of the same name."""

from __future__ import annotations

import inspect
from enum import Enum
from functools import partial
from types import SimpleNamespace

import pytest
import torch

import gnewton
from gnewton.errors import InputError
from gnewton.optim import grouped_newton
from gnewton.optim.averaging import ExponentialAveraging
from gnewton.optim.controllers import Progress
from gnewton.optim.directions import NAMED
from gnewton.optim.options import OPTIMIZERS
from gnewton.optim.presets import PRESETS
from tests.optim.problems import NOTHING, Quadratic, take_step, value
from tests.recipes import recipe as composed

OF_THE_RUN = {"model", "loss_fn", "partition", "curvature", "on_update"}


def described(value):
    """A value, or its class and attributes; the arguments of a direction with torch's defaults."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, str) and value in NAMED:
        value = NAMED[value]
    if isinstance(value, partial):
        names = inspect.signature(value.func).parameters.values()
        defaults = {p.name: p.default for p in names if p.default is not p.empty}
        return value.func, {**defaults, **value.keywords}
    return (type(value), vars(value)) if hasattr(value, "__dict__") and not callable(value) else value


def of_the_yaml(monkeypatch, name):
    taken = {}
    recipe = composed(OPTIMIZERS, "sgd", name)
    monkeypatch.setattr(
        grouped_newton, "GroupedNewton", lambda *arguments, **options: taken.update(options) or None
    )
    recipe.build(
        SimpleNamespace(model=None, loss_fn=None, partition=None, curvature=lambda size: None, on_update=None)
    )
    return taken


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_preset_has_the_settings_of_its_yaml(monkeypatch, name):
    signature = inspect.signature(grouped_newton.GroupedNewton.__init__).parameters.values()
    ours = {p.name: p.default for p in signature if p.name not in {"self", *OF_THE_RUN}}
    ours |= {"averaging": ExponentialAveraging(0.8), "controller": Progress(), **gnewton.preset(name)}
    theirs = of_the_yaml(monkeypatch, f"grouped_newton_{name}")
    shared = set(theirs) - OF_THE_RUN
    assert shared <= set(ours)
    assert {key: described(ours[key]) for key in shared} == {key: described(theirs[key]) for key in shared}
    assert set(gnewton.preset(name)) <= shared  # nothing that the command line does not set


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_call_makes_new_arguments_that_train(name):
    first, second = gnewton.preset(name), gnewton.preset(name)
    assert first["averaging"] is not second["averaging"]
    assert first["controller"] is not second["controller"]
    model = Quadratic(5)
    start = (torch.stack(list(model.x)).detach() - model.solution()).norm()
    optimizer = gnewton.GroupedNewton(model, value, **first)
    for _ in range(100):
        take_step(model, optimizer, NOTHING, value)
    distance = torch.stack(list(model.x)).detach() - model.solution()
    assert distance.norm() < 0.5 * start


def test_an_unknown_preset_is_refused():
    with pytest.raises(
        InputError, match="preset=papr: must be one of paper, noiseless; did you mean 'paper'"
    ):
        gnewton.preset("papr")
