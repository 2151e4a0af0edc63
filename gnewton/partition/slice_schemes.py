"""The schemes whose groups are slices: output channels, blocks of rows and attention heads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from gnewton.errors import InputError
from gnewton.partition.schemes import trainable_shapes
from gnewton.partition.slices import Slice
from gnewton.wrappers import unwrapped

if TYPE_CHECKING:
    from torch import nn

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
