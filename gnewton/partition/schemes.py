"""The named schemes of partitions, and the parameters they split: trainable, in model order, tied ones once.

Parameters are named as in the network itself, without what ``torch.compile`` and DistributedDataParallel add.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from gnewton.errors import InputError
from gnewton.options import listing
from gnewton.partition.slices import Slice
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


SlicedGroups = dict[str, list["str | Slice"]]

_HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "heads")
_INWARD = ("q_proj", "k_proj", "v_proj", "query", "key", "value", "to_q", "to_k", "to_v", "q", "k", "v")
_PACKED = ("in_proj", "qkv", "to_qkv", "qkv_proj")
_BY_HEAD = ("query_key_value",)  # q, k and v of a head follow each other, as in GPT-NeoX and BLOOM
_OUTWARD = ("out_proj", "o_proj", "proj", "to_out.0", "to_out", "out", "dense")
_PACKED_LEAVES = ("in_proj_weight", "in_proj_bias")
_LEAVES = ("q_proj_weight", "k_proj_weight", "v_proj_weight")


def row_blocks(model: nn.Module, rows: int, scheme: str = "row_blocks") -> SlicedGroups:
    """Blocks of ``rows`` output channels of each layer, weight and bias together.

    Output channels lie along the last axis of an embedding and the second one of a transposed convolution
    without channel groups, else along the first axis. Parameters that are neither weight nor bias, and those
    without an axis, stay whole.

    Raises:
        InputError: if there is not at least one row.
    """
    if rows < 1:
        raise InputError(f"partition={scheme}: rows={rows} must be at least 1")
    shapes = trainable_shapes(model)
    modules = dict(unwrapped(model).named_modules())
    layers: dict[tuple[str, int], list[tuple[str, int]]] = {}
    groups: SlicedGroups = {}
    for name, shape in shapes.items():
        path = name.rpartition(".")[0]
        axis = _channel_axis(modules.get(path), shape)
        if shape and name.endswith(("weight", "bias")):
            layers.setdefault((path, shape[axis]), []).append((name, axis))
        else:
            groups[name] = [name]
    sizes = [path for path, _ in layers]
    for (path, length), members in layers.items():
        title = path if path and sizes.count(path) == 1 else members[0][0]
        for start in range(0, length, rows):
            stop = min(start + rows, length)
            label = f"{title}[{start}]" if rows == 1 else f"{title}[{start}:{stop}]"
            groups[label] = [Slice(name, axis, ((start, stop),)) for name, axis in members]
    return groups


def per_channel(model: nn.Module) -> SlicedGroups:
    """One group per output channel or neuron: :func:`row_blocks` of one row."""
    return row_blocks(model, 1, "per_channel")


def per_head(model: nn.Module) -> SlicedGroups:
    """One group per attention head, and one per tensor for everything else.

    A head is its rows of the query, key and value projections, in one matrix or in several, and its columns
    of the output projection.

    Raises:
        InputError: if no attention is recognised.
    """
    shapes = trainable_shapes(model)
    groups: SlicedGroups = {}
    taken: set[str] = set()
    for path, module in unwrapped(model).named_modules():
        heads = _heads_of(module)
        prefix = f"{path}." if path else ""
        pieces = _attention(prefix, shapes, heads) if heads else []
        pieces = [piece for piece in pieces if piece[0] not in taken]
        if sum(shapes[name][axis] > 1 for name, axis, _ in pieces) < 2:
            continue
        taken.update(name for name, _, _ in pieces)
        for h in range(heads):
            groups[f"{prefix}head{h}"] = [
                _of_head(name, axis, shapes[name][axis], parts, h, heads) for name, axis, parts in pieces
            ]
    if not groups:
        raise InputError(
            "partition=per_head: no attention is recognised; it is a module with a number of heads "
            f"({', '.join(_HEADS)}) and projections {', '.join((*_PACKED[:2], *_INWARD[:3], _OUTWARD[0]))} "
            "or a torch.nn.MultiheadAttention; use partition=row_blocks"
        )
    return {**groups, **{name: [name] for name in shapes if name not in taken}}


def _channel_axis(module: nn.Module | None, shape: tuple[int, ...]) -> int:
    from torch import nn

    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return 1
    transposed = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    if isinstance(module, transposed) and module.groups == 1 and len(shape) > 1:
        return 1
    return 0


def _heads_of(module: nn.Module) -> int:
    for name in _HEADS:
        value = getattr(module, name, None)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return 0


def _attention(prefix: str, shapes: dict[str, tuple[int, ...]], heads: int) -> list[tuple[str, int, int]]:
    """(name, axis, number of matrices in it) of the parameters of an attention that divide into heads."""

    def candidates() -> Iterator[tuple[str, int, int]]:
        for leaf in _PACKED_LEAVES:
            yield prefix + leaf, 0, 3
        for leaf in _LEAVES:
            yield prefix + leaf, 0, 1
        for layer in _PACKED:
            yield from ((f"{prefix}{layer}.{kind}", 0, 3) for kind in ("weight", "bias"))
        for layer in (*_BY_HEAD, *_INWARD):
            yield from ((f"{prefix}{layer}.{kind}", 0, 1) for kind in ("weight", "bias"))
        for layer in _OUTWARD:
            yield f"{prefix}{layer}.weight", 1, 1

    return [
        (name, axis, parts)
        for name, axis, parts in candidates()
        if name in shapes and len(shapes[name]) > axis and shapes[name][axis] % (parts * heads) == 0
    ]


def _of_head(name: str, axis: int, length: int, parts: int, head: int, heads: int) -> Slice:
    part = length // parts
    size = part // heads
    starts = [k * part + head * size for k in range(parts)]
    return Slice(name, axis, tuple((start, start + size) for start in starts))
