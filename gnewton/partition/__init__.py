"""Partitions: the parameters of a model split into disjoint, covering groups, and the names for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from gnewton.errors import InputError
from gnewton.options import did_you_mean
from gnewton.partition.groups import Partition
from gnewton.partition.partition_options import PARTITIONS, PartitionRecipe
from gnewton.partition.slices import Slice

if TYPE_CHECKING:
    from torch import nn


__all__ = ["PARTITIONS", "Partition", "PartitionChoice", "PartitionRecipe", "Slice", "chosen_partition"]


PartitionChoice = (
    Partition
    | str
    | Sequence[str]
    | Mapping[str, str]
    | Sequence[Sequence[str]]
    | Mapping[str, Sequence[str]]
    | None
)
"""See :func:`chosen_partition`."""

NAMED: dict[str, Callable[[nn.Module], Partition]] = {
    "per_tensor": Partition.per_tensor,
    "single": Partition.single,
    "weights_biases": Partition.weights_biases,
    "by_layer": Partition.by_layer,
    "per_channel": Partition.per_channel,
    "per_head": Partition.per_head,
}
"""The schemes without options."""

_COUNTED = {"blocks": "k", "alternate": "k", "row_blocks": "rows"}


def chosen_partition(model: nn.Module, choice: PartitionChoice) -> Partition:
    """The partition that the value of an argument stands for.

    Args:
        model: the model to split.
        choice: a partition; None for one group per parameter tensor; the name of a scheme without options
            (:data:`NAMED`); regular expressions (:meth:`Partition.patterns`) or lists of parameter names
            (:meth:`Partition.from_names`), plain or by the name of the group.

    Raises:
        InputError: for anything else, or as these methods do.
    """
    if choice is None:
        return Partition.per_tensor(model)
    if isinstance(choice, Partition):
        return choice
    allowed = f"must be a Partition, one of {', '.join(NAMED)}, or lists of parameter names"
    if isinstance(choice, str):
        if choice in NAMED:
            return NAMED[choice](model)
        counted = f"; pass Partition.{choice}(model, {_COUNTED[choice]})" if choice in _COUNTED else ""
        raise InputError(f"partition={choice}: {allowed}{counted or did_you_mean(choice, NAMED)}")
    if isinstance(choice, (Mapping, list, tuple)):
        entries = list(choice.values()) if isinstance(choice, Mapping) else list(choice)
        if all(isinstance(entry, str) for entry in entries):
            return Partition.patterns(model, choice)  # type: ignore[arg-type]
        if all(_are_names(entry) for entry in entries):
            return Partition.from_names(model, choice)  # type: ignore[arg-type]
    value = repr(choice) if isinstance(choice, (int, float)) else f"<{type(choice).__name__}>"
    raise InputError(f"partition={value}: {allowed}")


def _are_names(entry: object) -> bool:
    return isinstance(entry, (list, tuple)) and all(isinstance(name, str) for name in entry)
