"""Stand-ins, written in basic operations, for what torch differentiates only twice."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class SmoothNorms(TorchFunctionMode):
    """Normalisations, differentiable without end; running statistics do not move.

    torch has no third derivative of batch normalisation; its third derivative of layer normalisation and its
    second derivative of the fused weight normalisation are wrong (torch 2.15, against finite differences), it
    has no second derivative of the hard sigmoid.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is F.batch_norm:
            given = _named(F.batch_norm, args, kwargs)
            return _by_channel(given, given["training"], sample_axis=True)
        if func is F.instance_norm:
            given = _named(F.instance_norm, args, kwargs)
            return _by_channel(given, given["use_input_stats"], sample_axis=False)
        if func is F.layer_norm:
            given = _named(F.layer_norm, args, kwargs)
            last = tuple(range(-len(given["normalized_shape"]), 0))
            return _affine(_standard(given["input"], last, given["eps"]), given, None)
        if func is torch.native_layer_norm:
            value, normalized_shape, weight, bias, eps = args
            last = tuple(range(-len(normalized_shape), 0))
            affine = {"weight": weight, "bias": bias}
            return _affine(_standard(value, last, eps), affine, None), *func(*args)[1:]
        if func is F.group_norm:
            given = _named(F.group_norm, args, kwargs)
            x: Tensor = given["input"]
            sets = x.reshape(x.shape[0], given["num_groups"], -1)
            shape = [1, x.shape[1], *[1] * (x.dim() - 2)]
            return _affine(_standard(sets, (2,), given["eps"]).reshape(x.shape), given, shape)
        if func is torch._weight_norm:
            v, g, *rest = args
            dim = kwargs.get("dim", rest[0] if rest else 0)
            axes = [axis for axis in range(v.dim()) if axis != dim]
            return v * (g / v.square().sum(axes, keepdim=True).sqrt())
        if func is F.hardsigmoid:
            return (args[0] / 6 + 0.5).clamp(0, 1)
        return func(*args, **unchunked(func, kwargs))


def unchunked(func: Callable[..., Any], kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
    """The options of a function, but for those that cost it its second derivative.

    The cross-entropy of a linear layer worked through in chunks has a backward pass of its own, which torch
    2.14 differentiates to something else, without a word.
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


def _by_channel(given: Mapping[str, Any], by_batch: bool, *, sample_axis: bool) -> Tensor:
    x: Tensor = given["input"]
    shape = [1, -1, *[1] * (x.dim() - 2)]
    if by_batch:
        axes = ((0,) if sample_axis else ()) + tuple(range(2, x.dim()))
        return _affine(_standard(x, axes, given["eps"]), given, shape)
    spread = torch.rsqrt(given["running_var"] + given["eps"])
    return _affine((x - given["running_mean"].reshape(shape)) * spread.reshape(shape), given, shape)


def _affine(out: Tensor, given: Mapping[str, Any], shape: list[int] | None) -> Tensor:
    weight, bias = given["weight"], given["bias"]
    if weight is not None:
        out = out * (weight if shape is None else weight.reshape(shape))
    return out if bias is None else out + (bias if shape is None else bias.reshape(shape))
