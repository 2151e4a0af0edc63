"""What an argument ``direction=`` may be: what builds an optimizer, the name of one, or several."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from gnewton.arguments import shown
from gnewton.errors import InputError
from gnewton.optim.composite import muon_with_adamw
from gnewton.optim.direction import DirectionFactory
from gnewton.options import did_you_mean

AVERAGE: DirectionFactory = partial(torch.optim.SGD, lr=1.0, momentum=0.9, dampening=0.9)
"""The exponential average of the gradient, which keeps the length of a gradient."""

ADAM: DirectionFactory = partial(torch.optim.Adam, lr=1.0)
"""The default direction of GroupedNewton: the average gradient over the root of its mean square."""

NAMED: dict[str, DirectionFactory] = {
    "average": AVERAGE,
    "gradient": partial(torch.optim.SGD, lr=1.0),
    "sgd": partial(torch.optim.SGD, lr=1.0, momentum=0.9),
    "adam": ADAM,
    "adamw": partial(torch.optim.AdamW, lr=1.0),
    "nadam": partial(torch.optim.NAdam, lr=1.0),
    "rmsprop": partial(torch.optim.RMSprop, lr=1.0),
    "muon": muon_with_adamw,
}
"""Directions by name, with the options they have on the command line (``optimizer/direction=…``)."""

DirectionChoice = str | DirectionFactory | Mapping[str, str | DirectionFactory]
"""A name, a factory, or several of them by a name of their own."""


def chosen_directions(choice: DirectionChoice) -> dict[str, DirectionFactory]:
    """The factories that an argument stands for, by label; a single one has the empty label.

    Raises:
        InputError: for an unknown name, an optimizer instead of what builds one, or anything else.
    """
    if not isinstance(choice, Mapping):
        return {"": _factory("direction", choice)}
    if not choice:
        raise InputError("direction: the mapping is empty; at least one direction is needed")
    return {label: _factory(f"direction['{label}']", member) for label, member in choice.items()}


def check_factory(argument: str, choice: Any) -> None:
    """What builds an optimizer from (name, tensor) pairs.

    Raises:
        InputError: for anything else.
    """
    if isinstance(choice, torch.optim.Optimizer):
        kind = type(choice).__name__
        raise InputError(
            f"{argument}=<{kind}>: must be what builds an optimizer, not an optimizer; pass "
            f"functools.partial({kind}, lr=1.0)"
        )
    if not callable(choice):
        raise InputError(
            f"{argument}={shown(choice)}: must be a function from (name, tensor) pairs to an optimizer, such "
            "as functools.partial(torch.optim.SGD, lr=1.0)"
        )


def _factory(argument: str, choice: Any) -> DirectionFactory:
    if isinstance(choice, str):
        if choice not in NAMED:
            kfac = "; pass lambda named: KFAC(model, params=named)" if choice == "kfac" else ""
            raise InputError(
                f"{argument}={choice}: must be one of {', '.join(NAMED)}, or a function from (name, tensor) "
                f"pairs to an optimizer{kfac or did_you_mean(choice, NAMED)}"
            )
        return NAMED[choice]
    if isinstance(choice, (list, tuple)):
        raise InputError(
            f"{argument}=<{type(choice).__name__}>: several directions are given by name, as in "
            "{'gradient': …, 'average': …}"
        )
    check_factory(argument, choice)
    factory: Callable[..., torch.optim.Optimizer] = choice
    return factory
