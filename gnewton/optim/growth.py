"""One more group for a partition, as ``add_param_group`` is asked for it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from gnewton.errors import InputError
from gnewton.options import listing
from gnewton.partition import Partition
from gnewton.wrappers import named_parameters

_KEYS = ("params", "name", "lr")


@dataclass(frozen=True)
class Growth:
    """A checked new group.

    Attributes:
        partition: the old groups and the new one behind them.
        named: (name, parameter) pairs of the new one, in model order.
        lr: its damping λ_1.
    """

    partition: Partition
    named: list[tuple[str, Tensor]]
    lr: float

    @property
    def name(self) -> str:
        """The name of the new group."""
        return self.partition.names[-1]


def growth(model: nn.Module, partition: Partition, asked: Mapping[str, Any], lr: float) -> Growth:
    """Check what is asked for.

    Args:
        model: the network.
        partition: its groups so far.
        asked: ``params``, a parameter, or several, or (name, parameter) pairs; optionally ``name``, by
            default that of the first parameter, and ``lr``.
        lr: λ_1 where none is asked for.

    Raises:
        InputError: for an unknown key, a tensor that is no parameter of the model, is frozen, in a group
            already or on another device, or an λ_1 out of range.
    """
    unknown = [key for key in asked if key not in _KEYS]
    if unknown:
        raise InputError(f"add_param_group {unknown[0]}=…: must be one of {', '.join(_KEYS)}")
    lr = asked.get("lr", lr)
    if not (isinstance(lr, (int, float)) and 0 < lr < math.inf):
        raise InputError(f"add_param_group lr={lr}: must be a finite number > 0")
    parameters = named_parameters(model)
    known = {id(p): name for name, p in parameters.items()}
    names = [_name(tensor, known) for tensor in _tensors(asked.get("params", ()))]
    for name in names:
        if name in partition.index:
            owner = partition.names[partition.index[name]]
            raise InputError(f"add_param_group params={name}: must be in no group yet; '{owner}' holds it")
    grown = partition.extended(model, names, asked.get("name"))
    device = parameters[partition.groups[0].parameters[0]].device
    elsewhere = [name for name in names if parameters[name].device != device]
    if elsewhere:
        raise InputError(
            f"add_param_group params={listing(elsewhere)}: must be on {device}, as the other groups are; "
            f"found {parameters[elsewhere[0]].device}"
        )
    return Growth(grown, [(name, parameters[name]) for name in grown.groups[-1].parameters], float(lr))


def _tensors(params: Any) -> list[Any]:
    """The tensors in any of the forms that torch takes."""
    if isinstance(params, Tensor):
        return [params]
    return [entry[1] if isinstance(entry, tuple) else entry for entry in params]


def _name(tensor: Any, known: dict[int, str]) -> str:
    if id(tensor) in known:
        return known[id(tensor)]
    what = f"a tensor of shape {tuple(tensor.shape)}" if isinstance(tensor, Tensor) else repr(tensor)
    raise InputError(f"add_param_group params={what}: must be parameters of the model")
