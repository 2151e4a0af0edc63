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
from packaging.version import Version
from torch import Tensor
from torch._decomp import get_decompositions
from torch.overrides import TorchFunctionMode

from gnewton.summary.backward_operations import BACKWARD
from gnewton.summary.tangent.program import CONSTANT

NO_SECOND_OF_CDIST = Version(torch.__version__) < Version("2.14")
"""Whether torch may lack the second derivative of ``cdist``: 2.11 does, 2.14 does not."""

_COMPUTE_MODE = "use_mm_for_euclid_dist_if_necessary"

LARGEST = 1 << 24
"""Entries of the differences of all pairs that are formed at once, where torch's ``cdist`` would do."""


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

    Against finite differences, torch 2.11 and 2.14 have a wrong third derivative of layer normalisation and a
    wrong second derivative of the fused weight normalisation. The third derivative of batch normalisation is
    wrong in 2.11 and missing in 2.14. The hard sigmoid has no second derivative, nor has ``cdist`` in 2.11.
    The third derivatives of ``pdist`` and ``logcumsumexp`` are NaN, those of ``cdist`` where two points meet.
    """

    def _call(self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        return smooth_call(func, args, kwargs)


def smooth_call(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The result of a function of torch, by a replacement that can be differentiated to any order."""
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


def _lengths(x: Tensor, p: float) -> Tensor:
    """‖·‖_p along the last axis; all derivatives of a Euclidean length that is zero are zero."""
    if p != 2:
        return torch.linalg.vector_norm(x, p, -1)
    squares = x.square().sum(-1)
    zero = squares == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, squares).sqrt())


def _pdist(input: Tensor, p: float = 2.0) -> Tensor:
    """‖x_i − x_j‖_p of all rows i < j. torch's higher derivatives are not finite."""
    i, j = torch.triu_indices(len(input), len(input), 1, device=input.device).unbind()
    return _lengths(input[i] - input[j], p)


def _all_distances(x1: Tensor, x2: Tensor, p: float = 2.0, compute_mode: Any = None) -> Tensor:
    """‖x_i − y_j‖_p, (…, n, m), of the rows of ``x1`` (…, n, d) and ``x2`` (…, m, d)."""
    return _lengths(x1.unsqueeze(-2) - x2.unsqueeze(-3), p)


def _cdist(x1: Tensor, x2: Tensor, p: float = 2.0, compute_mode: Any = _COMPUTE_MODE) -> Tensor:
    """As :func:`_all_distances`. torch's second derivatives are not finite where two points meet."""
    if NO_SECOND_OF_CDIST or (p == 2 and x1.numel() * x2.shape[-2] <= LARGEST):
        return _all_distances(x1, x2, p)
    return torch.cdist(x1, x2, p, compute_mode)


def _logaddexp(a: Tensor, b: Tensor) -> Tensor:
    """log(eᵃ + eᵇ); an entry that is −∞ has the derivative 0, and not NaN as in torch's own."""
    larger = torch.maximum(a.detach(), b.detach())
    larger = CONSTANT(torch.where(larger.isinf(), 0.0, larger))
    total = (a - larger).exp() + (b - larger).exp()
    empty = total.detach() == 0
    return (total.masked_fill(empty, 1.0).log() + larger).masked_fill(empty, -torch.inf)


def _logcumsumexp(input: Tensor, dim: int) -> Tensor:
    """Log-sums of 2, then 4, 8, … entries up to each place: no entry is lost beside a larger one far away."""
    if input.dim() == 0:
        return input.clone()
    x, reach = input.movedim(dim, 0), 1
    while reach < len(x):
        x = torch.cat([x[:reach], _logaddexp(x[reach:], x[:-reach])])
        reach *= 2
    return x.movedim(0, dim)


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


def _multilabel_margin_loss(x: Tensor, target: Tensor, reduction: int) -> tuple[Tensor, Tensor]:
    """Σ max(0, 1 − x_t + x_j) / d over the labels t before the first −1 and the classes j that are no label.

    torch 2.11 decomposes it wrongly: labels after the first −1 count as class 0.
    """
    rows, labels = torch.atleast_2d(x), torch.atleast_2d(target)
    counts = (labels == -1).cumsum(-1) == 0
    labels = torch.where(counts, labels, 0)
    classes = torch.arange(rows.shape[1], device=x.device)
    is_label = ((labels[:, :, None] == classes) & counts[:, :, None]).any(1)
    margins = (1 - rows.gather(1, labels)[:, :, None] + rows[:, None, :]).clamp_min(0) / rows.shape[1]
    loss = torch.where(counts[:, :, None] & ~is_label[:, None, :], margins, 0.0).sum((1, 2))
    loss = {0: loss.reshape(x.shape[:-1]), 1: loss.mean(), 2: loss.sum()}[reduction]
    return loss, is_label.to(x.dtype).reshape(target.shape)


def _glu(x: Tensor, dim: int = -1) -> Tensor:
    half = x.shape[dim] // 2
    return x.narrow(dim, 0, half) * x.narrow(dim, half, half).sigmoid()


def _real_logcumsumexp(input: Tensor, dim: int) -> Tensor:
    return torch.logcumsumexp(input, dim) if input.is_complex() else _logcumsumexp(input, dim)


SMOOTH: dict[Any, Callable[..., Any]] = {
    torch.cdist: _cdist,
    torch.pdist: _pdist,
    torch.logcumsumexp: _real_logcumsumexp,
    Tensor.logcumsumexp: _real_logcumsumexp,
}
"""What a model calls instead of a function, with the same arguments, for both engines. Scripted code is not
intercepted; in a trace, the decompositions of the same operations still reach it."""

DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {
    aten._weight_norm_interface.default: _weight_norm,
    aten.logsumexp.default: _logsumexp,
    aten.glu.default: _glu,
    aten.prod.dim_int: _prod,
    aten.prod.default: _prod_of_all,
    aten.hypot.default: lambda x, y: (x * x + y * y).sqrt(),
    aten.copy.default: _copy,
    aten._pdist_forward.default: _pdist,
    aten.logcumsumexp.default: _logcumsumexp,
    aten._embedding_bag.default: _embedding_bag,
    aten._embedding_bag_forward_only.default: _embedding_bag,
    **({aten._cdist_forward.default: _all_distances} if NO_SECOND_OF_CDIST else {}),
    aten.multilabel_margin_loss_forward.default: _multilabel_margin_loss,
    **get_decompositions([aten.multi_margin_loss.default]),
    **BACKWARD,
}
