"""The parameters that a partition splits: the trainable ones in model order, tied ones once.

They are named as in the network itself, without what ``torch.compile`` and DistributedDataParallel add.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gnewton.errors import InputError
from gnewton.wrappers import named_parameters, unwrapped

if TYPE_CHECKING:
    from torch import nn


def trainable_sizes(model: nn.Module) -> dict[str, int]:
    """Number of scalars of each trainable parameter, by name, tied ones once, in model order.

    Raises:
        InputError: if it is no model, or has no trainable parameter.
    """
    sizes = {name: p.numel() for name, p in _named(model).items() if p.requires_grad}
    if not sizes:
        raise InputError("partition: the model has no trainable parameter")
    return sizes


def trainable_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shape of each trainable parameter, as :func:`trainable_sizes`."""
    trainable_sizes(model)
    return {name: tuple(p.shape) for name, p in _named(model).items() if p.requires_grad}


def frozen_names(model: nn.Module) -> frozenset[str]:
    """Names of the parameters that are not trained (``requires_grad=False``)."""
    return frozenset(name for name, p in _named(model).items() if not p.requires_grad)


def tied_hint(model: nn.Module, name: str) -> str:
    """A hint at the first name of a tied parameter, if ``name`` is another name of it; empty otherwise."""
    every = named_parameters(unwrapped(model), duplicates=True)
    if name not in every:
        return ""
    first = next(known for known, p in _named(model).items() if p is every[name])
    return f"; it is tied to '{first}', under which it is grouped"


def _named(model: nn.Module) -> dict[str, nn.Parameter]:
    return named_parameters(unwrapped(model))
