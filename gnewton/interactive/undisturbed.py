"""Batches of any loader, and measurements that leave no trace in the model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from gnewton.errors import InputError
from gnewton.optim.bound_optimizer import Batch, as_pair
from gnewton.partition import Partition
from gnewton.summary.batch import closed, opened
from gnewton.summary.isolation import without_side_effects
from gnewton.summary.problem import Forward, LossFunction, Problem


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
