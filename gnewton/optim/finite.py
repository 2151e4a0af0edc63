"""Steps that are made only where all of their numbers are finite, decided on the device without waiting."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim.sgd import sgd

_FUSED = ("cpu", "cuda")


def all_finite(tensors: Sequence[Tensor]) -> Tensor:
    """Whether every entry of every tensor is finite, and so is each tensor's length: a scalar bool.

    One pass over the numbers and no wait; in float32 a length overflows from about 1e19 on.
    """
    if not tensors:
        return torch.tensor(True)
    return torch.stack(torch._foreach_norm(list(tensors))).isfinite().all()


@torch.no_grad()
def subtract_finite(parameters: list[Tensor], steps: list[Tensor], finite: Tensor | None = None) -> Tensor:
    """θ ← θ − step for all parameters, or for none of them if an entry of any step is not finite.

    Args:
        parameters: changed in place.
        steps: one of the same shape for each parameter.
        finite: whether they are, where that is known: a scalar bool on their device.

    Returns:
        Whether the steps were finite, so that they have been made: a scalar bool, still on the device.
    """
    finite = all_finite(steps) if finite is None else finite
    if all(map(_dense, parameters, steps)):
        # fused kernels look at found_inf themselves: no NaN meets a parameter, and nobody waits for the flag
        sgd(
            parameters,
            steps,
            [None] * len(steps),
            fused=True,
            found_inf=(~finite).float(),
            weight_decay=0.0,
            momentum=0.0,
            lr=1.0,
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )
    else:
        torch._foreach_sub_(parameters, [torch.where(finite, step, 0) for step in steps])
    return finite


def _dense(parameter: Tensor, step: Tensor) -> bool:
    """Whether a fused kernel, which counts through memory, may take both."""
    if parameter.device.type not in _FUSED or not parameter.is_floating_point():
        return False
    if parameter.dtype is not step.dtype:
        return False
    return parameter.is_contiguous() and step.is_contiguous()
