"""Functions and operations whose higher derivatives torch lacks or has wrong, written in basic operations.

Modes replace functions of torch where a model calls them. The table of decompositions replaces operations
of ATen: in tracing, and when a trace is compared with the model
(:mod:`gnewton.summary.tangent.trace_guard`).
"""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._decomp import get_decompositions
from torch.overrides import TorchFunctionMode

from gnewton.summary.tangent.program import CONSTANT

_COMPUTE_MODE = "use_mm_for_euclid_dist_if_necessary"


class FunctionMode(TorchFunctionMode):
    """Intercepts the calls of torch's functions; subclasses define ``_call``."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        return self._call(func, args, kwargs or {})

    @abstractmethod
    def _call(self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """The result of ``func(*args, **kwargs)``, or of its replacement."""


class SmoothNorms(FunctionMode):
    """Normalisations that can be differentiated to any order; running statistics are not updated.

    torch has no third derivative of batch normalisation; its third derivative of layer normalisation and its
    second derivative of the fused weight normalisation are wrong (torch 2.15, against finite differences), it
    has no second derivative of the hard sigmoid.
    """

    def _call(self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        if func is F.batch_norm:
            arguments = _named(F.batch_norm, args, kwargs)
            return _by_channel(arguments, arguments["training"], sample_axis=True)
        if func is F.instance_norm:
            arguments = _named(F.instance_norm, args, kwargs)
            return _by_channel(arguments, arguments["use_input_stats"], sample_axis=False)
        if func is F.layer_norm:
            arguments = _named(F.layer_norm, args, kwargs)
            last = tuple(range(-len(arguments["normalized_shape"]), 0))
            return _affine(_standard(arguments["input"], last, arguments["eps"]), arguments, None)
        if func is torch.native_layer_norm:
            value, normalized_shape, weight, bias, eps = args
            last = tuple(range(-len(normalized_shape), 0))
            affine = {"weight": weight, "bias": bias}
            return _affine(_standard(value, last, eps), affine, None), *func(*args)[1:]
        if func is F.group_norm:
            arguments = _named(F.group_norm, args, kwargs)
            x: Tensor = arguments["input"]
            sets = x.reshape(x.shape[0], arguments["num_groups"], -1)
            shape = [1, x.shape[1], *[1] * (x.dim() - 2)]
            return _affine(_standard(sets, (2,), arguments["eps"]).reshape(x.shape), arguments, shape)
        if func is torch._weight_norm:
            v, g, *rest = args
            dim = kwargs.get("dim", rest[0] if rest else 0)
            axes = [axis for axis in range(v.dim()) if axis != dim]
            return v * (g / v.square().sum(axes, keepdim=True).sqrt())
        if func is F.hardsigmoid:
            return (args[0] / 6 + 0.5).clamp(0, 1)
        if func in SMOOTH:
            return SMOOTH[func](*args, **kwargs)
        return func(*args, **unchunked(func, kwargs))


# --- functions in basic operations, for both engines ------------------------------------------------------


def _lengths(x: Tensor) -> Tensor:
    """Euclidean lengths along the last axis; all derivatives are zero where a length is."""
    squares = x.square().sum(-1)
    zero = squares == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, squares).sqrt())


LARGEST = 1 << 24  # entries of all differences that are formed at once


def _cdist(x1: Tensor, x2: Tensor, p: float = 2.0, compute_mode: str = _COMPUTE_MODE) -> Tensor:
    """Distances of all pairs. torch's second derivatives are not finite where two points meet."""
    if p != 2 or x1.numel() * x2.shape[-2] > LARGEST:
        return torch.cdist(x1, x2, p, compute_mode)
    return _lengths(x1.unsqueeze(-2) - x2.unsqueeze(-3))


def _pdist(x: Tensor, p: float = 2.0) -> Tensor:
    """Distances of all pairs of rows. torch's higher derivatives are not finite."""
    if p != 2:
        return torch.pdist(x, p)
    first, second = torch.triu_indices(len(x), len(x), 1, device=x.device)
    return _lengths(x[first] - x[second])


def _logaddexp(a: Tensor, b: Tensor) -> Tensor:
    larger = torch.maximum(a.detach(), b.detach())
    larger = CONSTANT(torch.where(larger.isinf(), 0.0, larger))
    return ((a - larger).exp() + (b - larger).exp()).log() + larger


def _logcumsumexp(x: Tensor, dim: int) -> Tensor:
    """Sums over the last 2, 4, 8 … entries in turn. torch's third derivative is not finite."""
    if x.dim() == 0 or x.is_complex():
        return torch.logcumsumexp(x, dim)
    x, shift = x.movedim(dim, 0), 1
    while shift < len(x):
        x = torch.cat([x[:shift], _logaddexp(x[shift:], x[:-shift])])
        shift *= 2
    return x.movedim(0, dim)


SMOOTH: dict[Any, Callable[..., Any]] = {
    torch.cdist: _cdist,
    torch.pdist: _pdist,
    torch.logcumsumexp: _logcumsumexp,
    Tensor.logcumsumexp: _logcumsumexp,
}


def unchunked(func: Callable[..., Any], kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
    """The options of a function without those that make its second derivative wrong.

    The cross-entropy of a linear layer in chunks has a backward pass of its own. torch 2.14 differentiates it
    to a wrong result, without an error.
    """
    if func is getattr(F, "linear_cross_entropy", None):
        return {k: v for k, v in kwargs.items() if k != "options"}
    return kwargs


def _named(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    bound = inspect.signature(function).bind(*args, **kwargs)
    bound.apply_defaults()
    return bound.arguments


def _standard(x: Tensor, axes: tuple[int, ...], eps: float) -> Tensor:
    centred = x - x.mean(axes, keepdim=True)
    return centred * torch.rsqrt(centred.square().mean(axes, keepdim=True) + eps)


def _by_channel(arguments: Mapping[str, Any], by_batch: bool, *, sample_axis: bool) -> Tensor:
    x: Tensor = arguments["input"]
    shape = [1, -1, *[1] * (x.dim() - 2)]
    if by_batch:
        axes = ((0,) if sample_axis else ()) + tuple(range(2, x.dim()))
        return _affine(_standard(x, axes, arguments["eps"]), arguments, shape)
    spread = torch.rsqrt(arguments["running_var"] + arguments["eps"])
    return _affine((x - arguments["running_mean"].reshape(shape)) * spread.reshape(shape), arguments, shape)


def _affine(out: Tensor, arguments: Mapping[str, Any], shape: list[int] | None) -> Tensor:
    weight, bias = arguments["weight"], arguments["bias"]
    if weight is not None:
        out = out * (weight if shape is None else weight.reshape(shape))
    return out if bias is None else out + (bias if shape is None else bias.reshape(shape))


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


def _logsumexp(x: Tensor, dim: Sequence[int] | int, keepdim: bool = False) -> Tensor:
    """log Σ exp(x − m) + m with m the largest entry, which is a constant."""
    largest = aten.amax.default(x.detach(), [dim] if isinstance(dim, int) else list(dim), True)
    largest = CONSTANT(torch.where(largest.isinf(), 0.0, largest))
    total = (x - largest).exp().sum(dim, keepdim=True).log() + largest
    if keepdim or x.dim() == 0:
        return total
    axes = [dim] if isinstance(dim, int) else list(dim)
    return total.squeeze(axes or list(range(x.dim())))


def _prod(x: Tensor, dim: int, keepdim: bool = False, dtype: torch.dtype | None = None) -> Tensor:
    """Products of pairs, then of pairs of these: zeros among the factors need no care."""
    if dtype is None and not (x.is_floating_point() or x.is_complex()):
        dtype = torch.int64
    x = x if dtype is None else x.to(dtype)
    if x.dim() == 0:
        return x.clone()
    x = x.movedim(dim, 0)
    while x.shape[0] > 1:
        half = x.shape[0] // 2
        pairs = x[:half] * x[half : 2 * half]
        x = pairs if x.shape[0] == 2 * half else torch.cat([pairs, x[2 * half :]])
    total = x[0] if x.shape[0] else x.new_ones(x.shape[1:])
    return total.unsqueeze(dim) if keepdim else total


def _prod_of_all(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    return _prod(x.flatten(), 0, dtype=dtype)


def _glu(x: Tensor, dim: int = -1) -> Tensor:
    half = x.shape[dim] // 2
    return x.narrow(dim, 0, half) * x.narrow(dim, half, half).sigmoid()


DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {
    aten._weight_norm_interface.default: _weight_norm,
    aten.logsumexp.default: _logsumexp,
    aten.glu.default: _glu,
    aten.prod.dim_int: _prod,
    aten.prod.default: _prod_of_all,
    aten.hypot.default: lambda x, y: (x * x + y * y).sqrt(),
    aten.copy.default: _copy,
    aten._embedding_bag.default: _embedding_bag,
    aten._embedding_bag_forward_only.default: _embedding_bag,
    **get_decompositions([aten.multi_margin_loss.default, aten.multilabel_margin_loss_forward.default]),
}
