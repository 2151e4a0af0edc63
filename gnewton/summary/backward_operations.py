"""The operations of backward passes, written in basic operations that have rules of their own.

They stand in the trace of a model that forms gradients inside, be it by ``torch.autograd.grad`` or by
``torch.func``. Most are decomposed as torch does it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._decomp import get_decompositions

aten = torch.ops.aten

_DECOMPOSED = (
    "_log_softmax_backward_data _softmax_backward_data _prelu_kernel_backward binary_cross_entropy_backward "
    "diagonal_backward elu_backward embedding_dense_backward gelu_backward glu_backward hardsigmoid_backward "
    "hardswish_backward hardtanh_backward huber_loss_backward leaky_relu_backward "
    "logit_backward mish_backward mse_loss_backward native_batch_norm_backward native_dropout_backward "
    "native_group_norm_backward native_layer_norm_backward nll_loss2d_backward nll_loss_backward "
    "select_backward silu_backward slice_backward smooth_l1_loss_backward soft_margin_loss_backward "
    "softplus_backward threshold_backward unfold_backward _fused_rms_norm_backward"
)


def _tanh_backward(grad: Tensor, y: Tensor) -> Tensor:
    return grad * (1 - y.square())


def _sigmoid_backward(grad: Tensor, y: Tensor) -> Tensor:
    return grad * (y - y.square())


def _log_sigmoid_backward(grad: Tensor, x: Tensor, buffer: Tensor) -> Tensor:
    return grad * aten.sigmoid.default(aten.neg.default(x))


def _convolution_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias_sizes: Sequence[int] | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The adjoints of the input, the weight and the bias of a convolution, as convolutions.

    That of the input is the transposed convolution with the same weight. That of the weight correlates the
    input with the adjoint: channels and samples change places, so do stride and dilation.
    """
    options = (list(stride), list(padding), list(dilation), transposed, list(output_padding), groups)
    if mask[1] and (transposed or groups > 1):
        return NotImplemented
    spatial = list(range(2, x.dim()))
    into_x = into_weight = into_bias = None
    if mask[0]:
        missing = [0] * len(spatial)
        if not transposed:
            for i, axis in enumerate(spatial):
                reach = dilation[i] * (weight.shape[axis] - 1) + 1
                missing[i] = x.shape[axis] - ((grad.shape[axis] - 1) * stride[i] - 2 * padding[i] + reach)
        into_x = aten.convolution.default(grad, weight, None, *options[:3], not transposed, missing, groups)
    if mask[1]:
        correlated = aten.convolution.default(
            x.transpose(0, 1), grad.transpose(0, 1), None,
            list(dilation), list(padding), list(stride), False, [0] * len(spatial), 1,
        )  # fmt: skip
        for axis in spatial:  # what the stride has left over
            correlated = correlated.narrow(axis, 0, weight.shape[axis])
        into_weight = correlated.transpose(0, 1)
    if mask[2]:
        into_bias = grad.sum([0, *spatial])
    return into_x, into_weight, into_bias


BACKWARD: dict[Any, Callable[..., Any]] = {
    **get_decompositions([getattr(aten, name) for name in _DECOMPOSED.split() if hasattr(aten, name)]),
    aten.tanh_backward.default: _tanh_backward,
    aten.sigmoid_backward.default: _sigmoid_backward,
    aten.log_sigmoid_backward.default: _log_sigmoid_backward,
    aten.convolution_backward.default: _convolution_backward,
}
