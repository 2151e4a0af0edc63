"""What all optimizers here have in common: they are bound to one model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from gnewton.errors import InputError


class BoundOptimizer(torch.optim.Optimizer):
    """An optimizer that holds on to its model, or to parts of it, beyond ``param_groups``.

    A copy would go on with the old model: functions that the user gave (the loss, what builds a direction)
    are not copied with what they refer to. So ``copy``, ``pickle`` and ``torch.save`` of the object are
    refused, alone or within another one. ``state_dict()`` is what is saved, and loaded by an optimizer built
    for the copied model.
    """

    def __getstate__(self) -> dict[str, Any]:
        name = type(self).__name__
        raise InputError(
            f"{name}: it is bound to its model and cannot be copied or pickled; build a new {name} for the "
            "copied model and load state_dict()"
        )


def evaluated(closure: Callable[[], Any] | None) -> Any:
    """What the closure of a step returns, with gradients enabled; None without one.

    Raises:
        InputError: if it is no function: a batch given by position, most likely.
    """
    if closure is None:
        return None
    if not callable(closure):
        raise InputError("step: closure must be a function; a batch is given by name, step(batch=…)")
    with torch.enable_grad():
        return closure()
