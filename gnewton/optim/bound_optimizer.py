"""What the optimizers of this package share: the tie to one model, and batches to measure curvature on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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


def own_part(state_dict: Mapping[str, Any], key: str, owner: str, groups: Sequence[str]) -> dict[str, Any]:
    """The part of a state that is neither torch's nor the inner optimizer's.

    Args:
        state_dict: the whole state.
        key: under which the part is kept there.
        owner: the optimizer that wrote it.
        groups: the names that it must be for, of groups or of groups and directions.

    Raises:
        InputError: if another optimizer wrote the state, or it is for other groups.
    """
    part: dict[str, Any] | None = state_dict.get(key)
    if part is None:
        raise InputError(f"state_dict: it was not written by {owner}")
    if part["groups"] != list(groups):
        raise InputError(f"state_dict: its groups are {part['groups']}, not {list(groups)}")
    return part


Batch = tuple[Any, Any]
"""(inputs, targets)."""


class CurvatureBatches:
    """An endless supply of (inputs, targets), or, without a source, the training batch in hand.

    Args:
        source: an iterable of batches, or None.
        per_update: how many are taken at each update of the rates.
        whole: whether a batch may be anything: it is then handed out as (batch, None).

    Raises:
        InputError: if the source is no iterable, or several are to be taken and there is none.
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
        """The next batch of the source; ``training`` where there is no source.

        Raises:
            InputError: if there is neither, the source holds no batch, or a batch is not what it should be.
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
            found = next(self._iterator, None)
            if found is not None:
                return self._pair(found, "curvature")
            self._iterator = None  # exhausted: start over
        raise InputError("curvature: the iterable holds no batch")

    def _pair(self, batch: Any, name: str) -> Batch:
        if self._whole:
            return batch, None
        if isinstance(batch, (tuple, list)) and len(batch) == 2:
            return batch[0], batch[1]
        of = f" of {len(batch)}" if isinstance(batch, (tuple, list)) else ""
        raise InputError(
            f"{name}: a batch must be (inputs, targets), not a {type(batch).__name__}{of}; several inputs go "
            "as ((a, b), targets) or (dict, targets), any other batch with forward="
        )

    def for_update(self, training: Any) -> list[Batch]:
        """The batches of one update, see :meth:`next`."""
        return [self.next(training) for _ in range(self._per_update)]

    @property
    def position(self) -> int | None:
        """Batches handed out so far, where the source can tell and seek; else None."""
        return getattr(self._source, "position", None)

    def seek(self, position: int | None) -> None:
        """Continue after ``position`` batches, where the source can seek."""
        self._iterator = None
        if position is not None and hasattr(self._source, "position"):
            self._source.position = position  # type: ignore[union-attr]
