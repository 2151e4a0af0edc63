"""A user's optimizer as the source of a direction: a name, a function, or an optimizer with its state."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gnewton.errors import InputError, first_line
from gnewton.inspection.measurement import OptimizerDirection
from gnewton.optim.bound_optimizer import BoundOptimizer
from gnewton.optim.directions import NAMED, check_factory
from gnewton.optim.shadow_direction import DirectionFactory
from gnewton.options import did_you_mean
from gnewton.wrappers import named_parameters

OptimizerChoice = str | torch.optim.Optimizer | DirectionFactory
"""A name (:data:`gnewton.optim.directions.NAMED`), a class of torch.optim or another function from (name,
tensor) pairs to an optimizer, or an optimizer of the model, whose options and state are used."""

_OF_TORCH = ("params", "param_names", "initial_lr")


def optimizer_direction(model: nn.Module, choice: OptimizerChoice) -> OptimizerDirection:
    """The steps of an optimizer at learning rate 1, at the present weights.

    Args:
        model: without wrappers.
        choice: the optimizer; one with a state is not changed.

    Raises:
        InputError: for an unknown name, or an optimizer that does not train exactly this model or cannot be
            built again.
    """
    parameters = {name: p for name, p in named_parameters(model).items() if p.requires_grad}
    if isinstance(choice, BoundOptimizer):
        raise InputError(
            f"optimizer=<{type(choice).__name__}>: it is bound to its own model; pass a function that builds "
            "the first-order optimizer"
        )
    if isinstance(choice, torch.optim.Optimizer):
        names = {p: name for name, p in parameters.items()}
        order = [names.get(p) for group in choice.param_groups for p in group["params"]]
        if sorted(map(str, order)) != sorted(parameters):
            raise InputError("optimizer: it must train exactly the trainable parameters of the model")
        state = choice.state_dict()
        state["param_groups"] = [{**group, "lr": 1.0} for group in state["param_groups"]]
        return OptimizerDirection(model, _rebuilt(choice), [str(name) for name in order], state)
    if isinstance(choice, str):
        if choice not in NAMED:
            hint = did_you_mean(choice, NAMED)
            raise InputError(
                f"optimizer={choice}: must be one of {', '.join(NAMED)}, an optimizer of the model, or a "
                f"function from (name, tensor) pairs to one{hint}"
            )
        choice = NAMED[choice]
    check_factory("optimizer", choice)
    return OptimizerDirection(model, _at_rate_one(choice), list(parameters))


def _at_rate_one(factory: Any) -> DirectionFactory:
    def build(named: list[tuple[str, Tensor]]) -> torch.optim.Optimizer:
        built = factory(named)
        for group in built.param_groups:
            group["lr"] = 1.0
        return built

    return build


def _rebuilt(optimizer: torch.optim.Optimizer) -> DirectionFactory:
    """Builds an optimizer of the same class with the same options of the groups, at learning rate 1."""

    def build(named: list[tuple[str, Tensor]]) -> torch.optim.Optimizer:
        tensors = iter([p for _, p in named])
        groups = []
        for group in optimizer.param_groups:
            options = {key: value for key, value in group.items() if key not in _OF_TORCH}
            groups.append({**options, "lr": 1.0, "params": [next(tensors) for _ in group["params"]]})
        kind: Any = type(optimizer)
        try:
            return kind(groups, lr=1.0)
        except TypeError as error:
            raise InputError(
                f"optimizer=<{kind.__name__}>: it cannot be built again ({first_line(error)}); "
                f"pass a function, such as functools.partial({kind.__name__}, …)"
            ) from error

    return build
