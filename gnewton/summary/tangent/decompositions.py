"""Operations whose higher derivatives torch lacks, written in basic operations.

Tracing replaces them by these functions, and so does the comparison of a trace with the model
(:mod:`gnewton.summary.tangent.trace_guard`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._decomp import get_decompositions

aten = torch.ops.aten

_SUM, _MEAN, _MAX = 0, 1, 2  # the modes of an embedding bag


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> tuple[Tensor, Tensor]:
    axes = [axis for axis in range(v.dim()) if axis != dim]
    norm = v.square().sum(axes, keepdim=True).sqrt()
    return v * (g / norm), norm


def _copy(target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    """The content of ``target`` after ``target.copy_(source)``."""
    if source.dtype != target.dtype or source.device != target.device:
        source = aten._to_copy.default(source, dtype=target.dtype, device=target.device)
    if source.shape != target.shape:
        source = aten.expand.default(source, list(target.shape))
    return aten.clone.default(source)


def _embedding_bag(
    weight: Tensor,
    indices: Tensor,
    offsets: Tensor,
    scale_grad_by_freq: bool = False,
    mode: int = _SUM,
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int = -1,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The rows of ``weight`` at ``indices``, reduced over bags that begin at ``offsets``."""
    starts = offsets[:-1] if include_last_offset else offsets
    places = torch.arange(indices.shape[0], dtype=starts.dtype, device=indices.device)
    bag = torch.searchsorted(starts, places, right=True) - 1
    counted = (indices != padding_idx)[:, None]
    rows = aten.embedding.default(weight, indices)
    if per_sample_weights is not None:
        rows = rows * per_sample_weights[:, None]
    shape = (starts.shape[0], weight.shape[1])
    number = torch.zeros_like(starts).index_add(0, bag, counted[:, 0].to(starts.dtype))[:, None]
    if mode == _MAX:
        lowest = weight.new_full(shape, -torch.inf)
        rows = rows.masked_fill(~counted, -torch.inf)
        result = lowest.scatter_reduce(0, bag[:, None].expand_as(rows), rows, "amax")
        result = result.masked_fill(number == 0, 0.0)
    else:
        result = weight.new_zeros(shape).index_add(0, bag, rows * counted)
        if mode == _MEAN:
            result = result / number.clamp(min=1)
    return result, bag, starts, starts


DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {
    aten._weight_norm_interface.default: _weight_norm,
    aten.copy.default: _copy,
    aten._embedding_bag.default: _embedding_bag,
    aten._embedding_bag_forward_only.default: _embedding_bag,
    **get_decompositions([aten.multi_margin_loss.default, aten.multilabel_margin_loss_forward.default]),
}
