"""Batches: how a model is called with one, which tensors it contains, and its number of samples.

A batch is a nest of tuples, lists, dictionaries, other mappings and dataclasses. Its leaves are tensors and
plain Python values. The latter count as settings: each value has a trace of its own.
"""

from __future__ import annotations

import copy
import dataclasses
import enum
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.utils import _pytree as pytree

from gnewton.errors import InputError

_PLAIN = (Tensor, type(None), bool, int, float, complex, str, bytes, enum.Enum, torch.dtype, torch.device)


def call(model: Callable[..., Any], inputs: Any) -> Any:
    """``model(*inputs)`` for a tuple or list, ``model(**inputs)`` for a mapping, else ``model(inputs)``.

    A packed sequence is one input.
    """
    if isinstance(inputs, (tuple, list)) and not isinstance(inputs, PackedSequence):
        return model(*inputs)
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(inputs)


def plain(batch: tuple[Any, Any]) -> tuple[Any, Any]:
    """The batch (inputs, targets) with a mapping of inputs as a dictionary: torch cuts no other mapping."""
    inputs, targets = batch
    return (dict(inputs), targets) if isinstance(inputs, Mapping) else (inputs, targets)


# --- containers that torch does not know --------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class _Shell:
    """The type and the keys of a container, without its content.

    Attributes:
        empty: a copy of the container that holds None everywhere.
        keys: of a mapping, or the attributes of a dataclass.
    """

    empty: Any
    keys: tuple[Any, ...]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Shell) and type(self.empty) is type(other.empty) and self.keys == other.keys

    def __hash__(self) -> int:
        return hash((type(self.empty), self.keys))

    def __repr__(self) -> str:
        return f"{type(self.empty).__module__}.{type(self.empty).__qualname__}{self.keys}"

    def filled(self, values: Sequence[Any]) -> Any:
        """A new container that holds ``values``."""
        container = copy.copy(self.empty)
        for key, value in zip(self.keys, values, strict=True):
            _put(container, key, value)
        return container


class _Opened:
    """A mapping or dataclass as a node of torch's pytrees."""

    def __init__(self, shell: _Shell, values: Sequence[Any]) -> None:
        self.shell = shell
        self.values = list(values)


pytree.register_pytree_node(
    _Opened,
    lambda opened: (opened.values, opened.shell),
    lambda values, shell: _Opened(shell, list(values)),
    serialized_type_name="gnewton.summary.batch.Opened",
)


def opened(batch: Any) -> Any:
    """The batch with its mappings and dataclasses as nodes of a pytree; the inverse is :func:`closed`."""
    if isinstance(batch, _PLAIN):
        return batch
    kind = type(batch)
    if kind is tuple or kind is list:
        return kind(opened(entry) for entry in batch)
    if kind is dict:
        return {key: opened(value) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return kind(*(opened(entry) for entry in batch))
    if isinstance(batch, MutableMapping):
        keys = tuple(batch)
        values = [batch[key] for key in keys]
    elif dataclasses.is_dataclass(batch):
        names = [entry.name for entry in dataclasses.fields(batch) if hasattr(batch, entry.name)]
        keys = tuple(dict.fromkeys([*names, *getattr(batch, "__dict__", {})]))
        values = [getattr(batch, key) for key in keys]
    else:
        return batch
    empty = copy.copy(batch)
    for key in keys:
        _put(empty, key, None)
    return _Opened(_Shell(empty, keys), [opened(value) for value in values])


def closed(batch: Any) -> Any:
    """The batch in its original containers; the inverse of :func:`opened`."""
    if isinstance(batch, _Opened):
        return batch.shell.filled([closed(value) for value in batch.values])
    kind = type(batch)
    if kind is tuple or kind is list:
        return kind(closed(entry) for entry in batch)
    if kind is dict:
        return {key: closed(value) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return kind(*(closed(entry) for entry in batch))
    return batch


def hidden(batch: Any) -> str:
    """The type of an object in an opened batch that may hide tensors from a trace; empty without such."""
    strange = (type(leaf).__name__ for leaf in pytree.tree_leaves(batch) if not isinstance(leaf, _PLAIN))
    return next(strange, "")


def _put(container: Any, key: Any, value: Any) -> None:
    if isinstance(container, MutableMapping):
        container[key] = value
    else:
        object.__setattr__(container, key, value)  # frozen dataclasses too


# --- samples ------------------------------------------------------------------------------------------------


def batch_size(inputs: Any, targets: Any) -> int:
    """Number of samples: the common length of all tensors, else that of the targets; 1 without data.

    Tensors without entries along the first axis do not count, nor do targets of length 1 where all inputs
    agree. Where ``targets`` is None, the second element of a pair (inputs, targets) in ``inputs`` is used.

    Raises:
        InputError: where the tensors do not determine it.
    """
    count = _samples(inputs, targets)
    if count is None:
        lengths = ", ".join(map(str, sorted(_lengths((inputs, targets)))))
        raise InputError(
            f"batch: its tensors have lengths {lengths} along the first axis, so the number of samples is "
            "unknown; give (inputs, targets) with one target per sample"
        )
    return count


def divisible(inputs: Any, targets: Any) -> int:
    """The number of samples if the batch may be split along them, else 1.

    Integers of another length may be indices into the tensors that would be split (edges of a graph).
    """
    count = _samples(inputs, targets)
    for leaf in pytree.tree_leaves((inputs, targets)):
        if isinstance(leaf, Tensor) and leaf.dim() > 0 and leaf.shape[0] != count:
            index = not (leaf.is_floating_point() or leaf.is_complex() or leaf.dtype == torch.bool)
            if index and leaf.numel() > 0:
                return 1
    return count or 1


def cut(tree: Any, samples: int, start: int, stop: int) -> Any:
    """The samples ``start`` … ``stop`` of every tensor whose first axis runs over the ``samples``."""
    return pytree.tree_map_only(
        Tensor, lambda t: t[start:stop] if t.dim() > 0 and t.shape[0] == samples else t, tree
    )


def _samples(inputs: Any, targets: Any) -> int | None:
    if targets is None and isinstance(inputs, (tuple, list)) and len(inputs) == 2:
        inputs, targets = inputs
    every, of_targets = _lengths((inputs, targets)), _lengths(targets)
    if len(every) <= 1:
        return next(iter(every), 1)
    if of_targets <= {1} and len(rest := _lengths(inputs)) == 1:
        return next(iter(rest))
    return next(iter(of_targets)) if len(of_targets) == 1 else None


def _lengths(tree: Any) -> set[int]:
    """The lengths of the first axes of all tensors that have one."""
    leaves = pytree.tree_leaves(tree)
    return {leaf.shape[0] for leaf in leaves if isinstance(leaf, Tensor) and leaf.dim() > 0} - {0}
