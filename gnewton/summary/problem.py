"""The loss of a model as a pure function of its parameters, and a request for its summary."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils import _pytree as pytree

from gnewton.errors import InputError
from gnewton.options import listing
from gnewton.partition import Partition
from gnewton.partition.slices import check_covered
from gnewton.summary.batch import batch_size, call, closed, cut, divisible, opened
from gnewton.wrappers import named_parameters, plain_name, uncompiled, unwrapped

LossFunction = Callable[[Any, Any], Tensor]
"""(outputs, targets) -> the loss of the batch, a scalar; with a :data:`Forward`, (outputs, batch)."""

Forward = Callable[[nn.Module, Any], Any]
"""(model, batch) -> outputs, for models that are called in another way."""

Direction = Mapping[str, Tensor] | Sequence[Tensor]
"""u by parameter name, or in the order of the model's trainable parameters."""


class Carrier(nn.Module):
    """Calls a function with a network, while other tensors stand for the parameters of the network.

    ``torch.func.functional_call`` swaps parameters for the duration of one call of a module. A call of this
    module may do anything with the network: call several of its methods, or a loss that reads its weights.

    Args:
        base: the network; it is not modified.
    """

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base

    def forward(self, function: Callable[[nn.Module], Any]) -> Any:
        """The value of ``function`` on the network."""
        return function(self.base)


@dataclass(frozen=True)
class Request:
    """A batch and the direction along which its summary is requested.

    Attributes:
        inputs, targets: the batch, opened (:func:`gnewton.summary.batch.opened`).
        direction: u by parameter name, in the shapes of the parameters.
    """

    inputs: Any
    targets: Any
    direction: Mapping[str, Tensor]

    @property
    def batch(self) -> tuple[Any, Any]:
        """The batch as a pair (inputs, targets)."""
        return self.inputs, self.targets

    @property
    def batch_size(self) -> int:
        """The number of samples of the batch."""
        return batch_size(self.inputs, self.targets)

    @property
    def divisible(self) -> int:
        """Number of samples if the batch may be split along them, else 1."""
        return divisible(self.inputs, self.targets)

    def part(self, samples: int, start: int, stop: int) -> Request:
        """The request for the samples ``start`` … ``stop`` of ``samples``."""
        inputs, targets = cut(self.batch, samples, start, stop)
        return Request(inputs, targets, self.direction)


@dataclass(frozen=True)
class Problem:
    """The loss as a pure function of parameters, buffers, inputs and targets.

    It is loss_fn(outputs, targets), where the outputs are ``model(*inputs)`` for a tuple or list of inputs,
    ``model(**inputs)`` for a mapping and ``model(inputs)`` for anything else. With ``forward`` it is
    loss_fn(forward(model, batch), batch), where the batch is (inputs, targets), or ``inputs`` alone where
    ``targets`` is None.

    Attributes:
        model: the network without the wrappers of ``torch.compile`` and DistributedDataParallel; its
            trainable parameters are those of the partition.
        loss_fn: maps (outputs, targets) to a scalar. It may read parameters of the model.
        partition: S groups of trainable parameters.
        forward: the function that calls the model; None for the usual call.

    Raises:
        InputError: if an argument has a wrong type, or model and partition disagree.
    """

    model: nn.Module
    loss_fn: LossFunction
    partition: Partition
    forward: Forward | None = None
    _wrapped_model: nn.Module = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_wrapped_model", self.model)  # a direction may use its names
        object.__setattr__(self, "model", unwrapped(self.model))
        check_loss(self.loss_fn)
        if self.forward is not None and not callable(self.forward):
            raise InputError("forward: must be a function (model, batch) -> outputs")
        known = set(self.parameters())
        if known != set(self.partition.parameters):
            wrong = sorted(known ^ set(self.partition.parameters))
            raise InputError(f"summary: model and partition disagree about {listing(wrong)}")
        if self.partition.sliced:
            shapes = {name: tuple(p.shape) for name, p in self.parameters().items()}
            check_covered(self.partition, shapes)

    @cached_property
    def _carrier(self) -> Carrier:
        return self.model if isinstance(self.model, Carrier) else Carrier(self.model)

    def _full_names(self) -> dict[str, str]:
        """The names of the parameters in :attr:`_carrier`, compiled parts and all, by their plain ones."""
        prefix = "" if self._carrier is self.model else "base."
        return {plain_name(self.model, name): prefix + name for name, _ in self.model.named_parameters()}

    def parameters(self) -> dict[str, Tensor]:
        """Trainable parameters by name, tied ones once: detached, sharing memory with the model."""
        return {name: p.detach() for name, p in named_parameters(self.model).items() if p.requires_grad}

    def copied_parameters(self) -> dict[str, Tensor]:
        """Copies of the trainable parameters that require gradients: the model may write into them."""
        return {name: p.clone().requires_grad_() for name, p in self.parameters().items()}

    def constants(self) -> dict[str, Tensor]:
        """Frozen parameters and buffers by name: detached, sharing memory with the model."""
        named = named_parameters(self.model).items()
        fixed = {name: p.detach() for name, p in named if not p.requires_grad}
        return fixed | {name: b.detach() for name, b in self.model.named_buffers()}

    def request(self, inputs: Any, targets: Any, direction: Direction) -> Request:
        """The request for the summary of a batch along a direction.

        Raises:
            InputError: if a parameter has no direction, or one of another shape.
        """
        named = self.check_direction(direction)
        inputs, targets = opened((inputs, targets))
        return Request(inputs, targets, named)

    def leaves(self, request: Request) -> list[Any]:
        """The leaves of constants, inputs and targets: what a traced program is called with."""
        return pytree.tree_leaves((self.constants(), *request.batch))

    def loss(
        self, parameters: Mapping[str, Tensor], constants: Mapping[str, Tensor], inputs: Any, targets: Any
    ) -> Tensor:
        """The scalar loss. A model that updates buffers does so in ``constants``, so pass copies."""
        prefix = "" if self._carrier is self.model else "base."
        full = self._full_names()
        values = {full.get(name, prefix + name): value for name, value in {**parameters, **constants}.items()}
        with uncompiled():
            loss = functional_call(self._carrier, values, (partial(self._objective, inputs, targets),))
        if not isinstance(loss, Tensor):
            raise InputError(f"summary: the loss must be a scalar tensor, got <{type(loss).__name__}>")
        if loss.numel() != 1:
            raise InputError(f"summary: the loss must be a scalar, got shape {tuple(loss.shape)}")
        return loss.reshape(())

    def results(
        self, parameters: Mapping[str, Tensor], constants: Mapping[str, Tensor], inputs: Any, targets: Any
    ) -> tuple[Tensor, ...]:
        """The traced results; the loss is the first of them."""
        return (self.loss(parameters, constants, inputs, targets),)

    def _objective(self, inputs: Any, targets: Any, model: nn.Module) -> Any:
        inputs, targets = closed((inputs, targets))
        return batch_loss(model, self.loss_fn, self.forward, inputs, targets)

    def check_direction(self, direction: Direction) -> dict[str, Tensor]:
        """The direction as detached tensors, one per trainable parameter.

        Raises:
            InputError: if a parameter has no direction, or one of another shape.
        """
        parameters = self.parameters()
        named = self._named(direction, parameters)
        missing = [name for name in parameters if name not in named]
        if missing:
            raise InputError(f"summary: the direction lacks {listing(missing)}")
        for name, p in parameters.items():
            if named[name].shape != p.shape:
                raise InputError(
                    f"summary: the direction of '{name}' has shape {tuple(named[name].shape)}, "
                    f"the parameter {tuple(p.shape)}"
                )
        return {name: named[name].detach().to(p.dtype) for name, p in parameters.items()}

    def _named(self, direction: Direction, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The direction by plain parameter name."""
        if isinstance(direction, Mapping):
            named = {
                name if name in parameters else plain_name(self._wrapped_model, name): u
                for name, u in direction.items()
            }
        elif isinstance(direction, (list, tuple)):
            if len(direction) != len(parameters):
                raise InputError(
                    f"summary: the direction has {len(direction)} tensors, the model {len(parameters)} "
                    "trainable parameters"
                )
            named = dict(zip(parameters, direction, strict=True))
        else:
            raise InputError(
                f"direction=<{type(direction).__name__}>: must map parameter names to tensors, or list "
                "tensors in the order of the trainable parameters"
            )
        for name in parameters:
            if name in named and not isinstance(named[name], Tensor):
                kind = type(named[name]).__name__
                raise InputError(f"summary: the direction of '{name}' must be a tensor, not <{kind}>")
        return named

    def device(self) -> torch.device:
        """The device of the parameters."""
        return next(self.model.parameters()).device


def batch_loss(
    model: nn.Module, loss_fn: LossFunction, forward: Forward | None, inputs: Any, targets: Any
) -> Any:
    """The value of the loss, with the model called as :class:`Problem` says."""
    return loss_fn(*loss_arguments(model, forward, inputs, targets))


def loss_arguments(model: nn.Module, forward: Forward | None, inputs: Any, targets: Any) -> tuple[Any, Any]:
    """The outputs of the model, and what the loss takes beside them: the targets, or the whole batch."""
    if forward is None:
        return call(model, inputs), targets
    batch = inputs if targets is None else (inputs, targets)
    return forward(model, batch), batch


def check_loss(loss_fn: Any) -> None:
    """Check that a loss is a function of (outputs, targets).

    Raises:
        InputError: for anything else, such as the class of a loss module.
    """
    if isinstance(loss_fn, type):
        name = loss_fn.__name__
        raise InputError(f"loss_fn: must be a function of (outputs, targets), not a class; pass {name}()")
    if not callable(loss_fn):
        shown = repr(loss_fn) if isinstance(loss_fn, (str, int, float)) else f"<{type(loss_fn).__name__}>"
        raise InputError(
            f"loss_fn={shown}: must be a function of (outputs, targets), such as "
            "torch.nn.functional.cross_entropy"
        )
