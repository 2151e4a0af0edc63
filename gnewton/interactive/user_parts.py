"""A user's loader and optimizer as sources of batches and directions; the model is left as it was."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from gnewton.errors import InputError, first_line
from gnewton.inspection.measurement import OptimizerDirection
from gnewton.optim.bound_optimizer import Batch, BoundOptimizer, as_pair
from gnewton.optim.directions import NAMED, check_factory
from gnewton.optim.shadow_direction import DirectionFactory
from gnewton.options import did_you_mean
from gnewton.partition import Partition
from gnewton.summary.batch import closed, opened
from gnewton.summary.isolation import without_side_effects
from gnewton.summary.problem import Forward, LossFunction, Problem
from gnewton.wrappers import named_parameters


@contextlib.contextmanager
def undisturbed(
    model: nn.Module, loss_fn: LossFunction, partition: Partition, forward: Forward | None
) -> Iterator[None]:
    """Restore buffers, ``.grad``, attributes of modules and random streams on leaving, however it is left.

    Buffers and gradients are the same tensors with the same values. Parameters and the training mode are not
    touched by what is measured here.

    Raises:
        InputError: as for :class:`~gnewton.summary.problem.Problem`.
    """
    problem = Problem(model, loss_fn, partition, forward)
    modules = list(problem.model.modules())
    buffers = [dict(module._buffers) for module in modules]
    values = [{name: b.clone() for name, b in named.items() if b is not None} for named in buffers]
    gradients = [(p, p.grad) for p in problem.model.parameters()]
    try:
        with without_side_effects(problem):
            yield
    finally:
        for module, named, kept in zip(modules, buffers, values, strict=True):
            module._buffers.clear()
            module._buffers.update(named)
            with torch.no_grad():
                for name, value in kept.items():
                    named[name].copy_(value)  # type: ignore[union-attr]
        for parameter, gradient in gradients:
            parameter.grad = gradient


class LoaderBatches:
    """The batches of a loader on the device of a model, without end.

    Args:
        loader: any iterable of batches, started again when it is exhausted.
        device: of the model.
        whole: whether a batch may have any form (with ``forward=``); it is then (batch, None).

    Raises:
        InputError: if the loader is not iterable; while iterating, if it is empty, cannot be started again,
            or holds a batch of another form.
    """

    def __init__(self, loader: Iterable[Any], device: torch.device, *, whole: bool) -> None:
        if not isinstance(loader, Iterable) or isinstance(loader, (str, Tensor)):
            raise InputError(
                f"loader=<{type(loader).__name__}>: must be an iterable of batches (inputs, targets)"
            )
        self._loader, self._device, self._whole = loader, device, whole

    def once(self) -> Iterator[Batch]:
        """The batches of one pass."""
        for batch in self._loader:
            pair = as_pair(batch, "loader", whole=self._whole)
            moved = pytree.tree_map_only(Tensor, lambda t: t.to(self._device), opened(pair))
            inputs, targets = closed(moved)
            yield inputs, targets

    def __iter__(self) -> Iterator[Batch]:
        passes = 0
        while True:
            empty = True
            for batch in self.once():
                empty = False
                yield batch
            passes += 1
            if empty:
                why = (
                    "it holds no batch"
                    if passes == 1
                    else "it cannot be started again; pass a list or a DataLoader"
                )
                raise InputError(f"loader: {why}")


def device_of(model: nn.Module) -> torch.device:
    """The device of the parameters.

    Raises:
        InputError: if the model has none.
    """
    parameter = next(model.parameters(), None)
    if parameter is None:
        raise InputError("model: it has no parameters")
    return parameter.device


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
