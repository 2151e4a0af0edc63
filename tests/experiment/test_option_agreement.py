"""The command line and the constructors agree on defaults and allowed values."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any, get_type_hints

import pytest
import torch.nn.functional as F
from torch import nn

from gnewton import KFAC, GroupedNewton
from gnewton.errors import InputError
from gnewton.optim.options import OPTIMIZERS
from gnewton.options import Rule, declaration
from tests.recipes import recipe

CONSTRUCTORS = {
    "grouped_newton": partial(GroupedNewton, loss_fn=F.mse_loss),
    "kfac": partial(KFAC, likelihood="gaussian"),
}

TIED = {
    ("grouped_newton", "solver"): {"negative_rates": "keep"},  # solver=newton has no constrained form
}
"""Arguments without which another one cannot be tried."""


def _arguments(name: str) -> set[str]:
    constructor = CONSTRUCTORS[name]
    return set(inspect.signature(constructor.func).parameters)


def _shared(name: str) -> list[tuple[str, Rule, Any]]:
    """The options of an optimizer that its constructor takes too: (name, allowed values, type)."""
    kind = OPTIMIZERS[name]
    hints = get_type_hints(kind)
    arguments = _arguments(name)
    return [
        (entry.name, declaration(entry).rule, hints[entry.name])
        for entry in fields(kind)
        if entry.name in arguments
    ]


def _probes(rule: Rule, kind: Any) -> Iterator[Any]:
    """Values on both sides of every bound, and on it."""
    yield from rule.choices
    if rule.choices:
        yield "nonsense"
    step = 1 if kind in (int, int | None) else 0.25
    for bound in (rule.above, rule.at_least, rule.below, rule.at_most):
        if bound is not None:
            yield from (type(step)(bound) + sign * step for sign in (-1, 0, 1))
    if rule != Rule() and not rule.choices:
        yield from (float("nan"), float("inf"))


PROBES = [
    pytest.param(name, option, value, rule.admits(value), id=f"{name}-{option}={value}")
    for name in CONSTRUCTORS
    for option, rule, kind in _shared(name)
    for value in dict.fromkeys(_probes(rule, kind))
]


@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_the_defaults_are_the_same(name):
    parameters = inspect.signature(CONSTRUCTORS[name].func).parameters
    chosen = recipe(OPTIMIZERS, name, name)
    options = {**vars(chosen), **(vars(chosen.curvature) if hasattr(chosen, "curvature") else {})}
    parts = {option for option, value in options.items() if is_dataclass(value)}
    compared = (set(options) & set(parameters)) - parts
    assert compared >= {option for option, rule, _ in _shared(name) if rule != Rule()} - {"curvature"}
    for option in compared:
        assert parameters[option].default == options[option], option


@pytest.mark.parametrize(("name", "option", "value", "allowed"), PROBES)
def test_the_ranges_are_the_same(name, option, value, allowed):
    tied = TIED.get((name, option), {})
    build = partial(CONSTRUCTORS[name], nn.Linear(2, 1), **{option: value, **tied})
    if allowed:
        build()
    else:
        with pytest.raises(InputError, match=f"^{option}="):
            build()
