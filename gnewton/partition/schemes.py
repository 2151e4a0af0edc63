"""The named schemes of partitions, and the parameters they split: trainable, in model order, tied ones once.

Parameters are named as in the network itself, without what ``torch.compile`` and DistributedDataParallel add.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from gnewton.errors import InputError
from gnewton.options import listing
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


Groups = dict[str, list[str]]

MODEL_ITSELF = "(model)"
"""The name of a layer that is the model itself, whose module path is empty."""


def per_tensor(model: nn.Module) -> Groups:
    """One group per parameter, called after it."""
    return {name: [name] for name in trainable_sizes(model)}


def single(model: nn.Module) -> Groups:
    """One group, ``all``."""
    return {"all": list(trainable_sizes(model))}


def weights_biases(model: nn.Module) -> Groups:
    """``weights``, ``biases`` and the ``rest``, as far as the model has them."""
    return _by_kind(trainable_sizes(model))


def by_layer(model: nn.Module) -> Groups:
    """One group per layer, called after its module."""
    layers: Groups = {}
    for name in trainable_sizes(model):
        layers.setdefault(name.rpartition(".")[0] or MODEL_ITSELF, []).append(name)
    return layers


def blocks(model: nn.Module, k: int) -> Groups:
    """k blocks of consecutive layers, their sizes equal up to one layer; kinds apart within a block."""
    layers = list(by_layer(model).values())
    _check_count("blocks", k, len(layers))
    return _apart("block", [i * k // len(layers) for i in range(len(layers))], layers)


def alternate(model: nn.Module, k: int) -> Groups:
    """k classes of layers, the index of a layer modulo k; kinds apart within a class."""
    layers = list(by_layer(model).values())
    _check_count("alternate", k, len(layers))
    return _apart("alternate", [i % k for i in range(len(layers))], layers)


def patterns(
    model: nn.Module, expressions: Sequence[str] | Mapping[str, str], rest: str | None = None
) -> Groups:
    """One group per regular expression, of the parameters in whose name it is found first.

    Args:
        model: the model to split.
        expressions: searched anywhere in a name (anchor with ``^`` and ``$``), the earlier one winning; a
            mapping gives the groups other names than their expressions.
        rest: group of the parameters in which no expression is found; None: there must be none.

    Raises:
        InputError: for an expression that is invalid or gets no parameter, and for parameters left over.
    """
    named = expressions if isinstance(expressions, Mapping) else {text: text for text in expressions}
    if len(named) < len(expressions):
        raise InputError(f"partition=patterns: an expression is given twice in {listing(list(expressions))}")
    names = list(trainable_sizes(model))
    groups: Groups = {}
    remaining = names
    for title, text in named.items():
        wrong = complaint(text)
        if wrong:
            raise InputError(f"partition=patterns: {wrong}")
        matched = [name for name in names if re.search(text, name)]
        groups[title] = [name for name in matched if name in remaining]
        remaining = [name for name in remaining if name not in matched]
        if not groups[title]:
            why = (
                f"all it matches belongs to earlier patterns ({listing(matched, 4)})"
                if matched
                else f"no parameter matches; the model has {listing(names, 6)}"
            )
            raise InputError(f"partition=patterns: '{text}': {why}")
    if remaining and rest is None:
        raise InputError(
            f"partition=patterns: no pattern matches {listing(remaining)}; name a group for the rest"
        )
    if remaining and rest is not None:
        if rest in groups:
            raise InputError(f"partition=patterns: the rest group '{rest}' is also the name of a pattern")
        groups[rest] = remaining
    return groups


def complaint(text: str) -> str | None:
    """Why ``text`` is no regular expression; None if it is one."""
    try:
        re.compile(text)
    except re.error as error:
        return f"'{text}' is no regular expression: {error}"
    return None


def _by_kind(names: Iterable[str]) -> Groups:
    kinds: Groups = {"weights": [], "biases": [], "rest": []}
    for name in names:
        kind = "weights" if name.endswith("weight") else "biases" if name.endswith("bias") else "rest"
        kinds[kind].append(name)
    return {kind: members for kind, members in kinds.items() if members}


def _apart(prefix: str, classes: Sequence[int], layers: Sequence[list[str]]) -> Groups:
    """Merge the layers of each class, and split each class by kind."""
    merged: dict[int, list[str]] = {}
    for position, names in zip(classes, layers, strict=True):
        merged.setdefault(position, []).extend(names)
    return {
        f"{prefix}{position}.{kind}": members
        for position, names in sorted(merged.items())
        for kind, members in _by_kind(names).items()
    }


def _check_count(scheme: str, k: int, layers: int) -> None:
    if not 1 <= k <= layers:
        raise InputError(f"partition={scheme}: k={k} must be from 1 to {layers}, the layers of this model")
