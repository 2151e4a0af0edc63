"""The base of the optimizers of this package: bound to one model, with batches to measure curvature on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor

from gnewton.errors import InputError


def refuse_sparse(parameters: Iterable[Tensor]) -> None:
    """Refuse sparse gradients.

    Raises:
        InputError: if a parameter has one.
    """
    if any(p.grad is not None and p.grad.is_sparse for p in parameters):
        raise InputError("sparse gradients are not supported: build the embedding with sparse=False")


class BoundOptimizer(torch.optim.Optimizer):
    """An optimizer that refers to its model, or to parts of it, beyond ``param_groups``.

    A copy would still refer to the old model, since the user's functions (the loss, the factory of a
    direction) are not copied with the objects that they refer to. Hence ``copy``, ``pickle`` and
    ``torch.save`` of the optimizer are refused. Save ``state_dict()`` instead, and load it into an optimizer
    built for the copied model.

    Attributes:
        why_fixed: why no group can be added once the optimizer is built; empty: groups can be added.
    """

    why_fixed: ClassVar[str] = ""

    _built = False  # set at the end of __init__: torch's own adds the first groups by add_param_group

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, if the optimizer allows it.

        Raises:
            InputError: if it does not, once it is built.
        """
        if self._built and self.why_fixed:
            raise InputError(f"add_param_group: {self.why_fixed}; build a new {type(self).__name__} instead")
        super().add_param_group(param_group)

    def __getstate__(self) -> dict[str, Any]:
        name = type(self).__name__
        raise InputError(
            f"{name}: it is bound to its model and cannot be copied or pickled; build a new {name} for the "
            "copied model and load state_dict()"
        )


class WarnOnce:
    """Logs each warning once.

    Args:
        logger: where.
        name: of the object that warns.
    """

    def __init__(self, logger: logging.Logger, name: str) -> None:
        self._logger, self._name = logger, name
        self._logged: set[str] = set()

    def __call__(self, text: str) -> None:
        """Log ``text``, unless it has been logged before."""
        if text not in self._logged:
            self._logged.add(text)
            self._logger.warning("%s: %s", self._name, text)


def evaluated(closure: Callable[[], Any] | None) -> Any:
    """The value of a step's closure, called with gradients enabled; None without a closure.

    Raises:
        InputError: if it is not a function but, most likely, a batch given by position.
    """
    if closure is None:
        return None
    if not callable(closure):
        raise InputError("step: closure must be a function; a batch is given by name, step(batch=…)")
    with torch.enable_grad():
        return closure()


@contextmanager
def put_back(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Within the block these tensors may be overwritten; then they are as before, bit for bit."""
    tensors = list(tensors)
    kept = [tensor.detach().clone() for tensor in tensors]
    try:
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(tensors, kept)


def saved_part(state_dict: Mapping[str, Any], key: str, owner: str, groups: Sequence[str]) -> dict[str, Any]:
    """The part of a state that belongs neither to torch nor to the inner optimizer.

    Args:
        state_dict: the whole state.
        key: the key of the part.
        owner: the name of the optimizer that must have written it.
        groups: the names of groups, or of groups and directions, that it must belong to.

    Raises:
        InputError: if another optimizer wrote the state, or it belongs to other groups.
    """
    part: dict[str, Any] | None = state_dict.get(key)
    if part is None:
        raise InputError(f"state_dict: it was not written by {owner}")
    if part["groups"] != list(groups):
        raise InputError(f"state_dict: its groups are {part['groups']}, not {list(groups)}")
    return part


Batch = tuple[Any, Any]
"""(inputs, targets)."""


def as_pair(batch: Any, name: str, *, whole: bool) -> Batch:
    """A batch (inputs, targets); with ``whole`` a batch of any form, as (batch, None).

    Raises:
        InputError: if the batch has another form; it begins with ``name``.
    """
    if whole:
        return batch, None
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return batch[0], batch[1]
    of = f" of {len(batch)}" if isinstance(batch, (tuple, list)) else ""
    raise InputError(
        f"{name}: a batch must be (inputs, targets), not a {type(batch).__name__}{of}; several inputs go "
        "as ((a, b), targets) or (dict, targets), any other batch with forward="
    )


class CurvatureBatches:
    """An endless series of batches (inputs, targets); without a source, the current training batch.

    Args:
        source: an iterable of batches, restarted when it is exhausted; or None.
        per_update: number of batches at each update of the rates.
        whole: whether a batch may have any form; it is then returned as (batch, None).

    Raises:
        InputError: if the source is not iterable, or missing when several batches are needed.
    """

    def __init__(self, source: Iterable[Any] | None, per_update: int = 1, *, whole: bool = False) -> None:
        if source is not None and not isinstance(source, Iterable):
            raise InputError(f"curvature=<{type(source).__name__}>: must be an iterable of batches")
        if source is None and per_update > 1:
            raise InputError("averaging over several batches at each update: needs curvature=")
        self._source = source
        self._per_update = per_update
        self._whole = whole
        self._iterator: Iterator[Any] | None = None

    def next(self, training: Any) -> Batch:
        """The next batch of the source; without a source, ``training``.

        Raises:
            InputError: if there is neither, the source is empty, or a batch has the wrong form.
        """
        if self._source is None:
            if training is None:
                raise InputError(
                    "step: curvature is due; pass batch=(inputs, targets) or build with curvature="
                )
            return self._pair(training, "batch")
        for _ in range(2):
            if self._iterator is None:
                self._iterator = iter(self._source)
            batch = next(self._iterator, None)
            if batch is not None:
                return self._pair(batch, "curvature")
            self._iterator = None  # exhausted: start over
        raise InputError("curvature: the iterable holds no batch")

    def _pair(self, batch: Any, name: str) -> Batch:
        return as_pair(batch, name, whole=self._whole)

    def for_update(self, training: Any) -> list[Batch]:
        """The batches of one update (see :meth:`next`)."""
        return [self.next(training) for _ in range(self._per_update)]

    @property
    def position(self) -> int | None:
        """Number of batches taken so far if the source can tell and seek, else None."""
        return getattr(self._source, "position", None)

    def seek(self, position: int | None) -> None:
        """Continue after ``position`` batches, if the source can seek."""
        self._iterator = None
        if position is not None and hasattr(self._source, "position"):
            self._source.position = position  # type: ignore[union-attr]
