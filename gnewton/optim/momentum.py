"""The step of torch's SGD at learning rate 1, read off its buffers: no parameter has to be moved for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def readable(inner: torch.optim.Optimizer) -> bool:
    """Whether ``inner`` is SGD that would subtract its momentum buffers, or the gradients, as they are."""
    return (
        type(inner) is torch.optim.SGD
        and not inner._optimizer_step_pre_hooks
        and not inner._optimizer_step_post_hooks
        and all(map(_is_plain, inner.param_groups))
    )


def _is_plain(group: dict[str, Any]) -> bool:
    if not isinstance(group["lr"], (int, float)) or group["lr"] != 1:
        return False
    return not (group["nesterov"] or group["maximize"] or group["differentiable"])


def buffers(inner: torch.optim.Optimizer) -> list[Tensor]:
    """The momentum buffers that ``inner`` has by now."""
    held = (state.get("momentum_buffer") for state in inner.state.values())
    return [buffer for buffer in held if buffer is not None]


@torch.no_grad()
def advance(inner: torch.optim.Optimizer) -> dict[Tensor, Tensor]:
    """Advance the momentum buffers of ``inner`` by one step, from the gradients of its parameters.

    Weight decay is not added here.

    Returns:
        What the step would subtract, by parameter; those without gradient are missing. The tensors are the
        buffers or the gradients themselves, so they must not be written to.
    """
    found: dict[Tensor, Tensor] = {}
    for group in inner.param_groups:
        gradients = {p: p.grad for p in group["params"] if p.grad is not None}
        found |= gradients if group["momentum"] == 0 else _averages(inner, group, gradients)
    return found


def _averages(
    inner: torch.optim.Optimizer, group: dict[str, Any], gradients: dict[Tensor, Tensor]
) -> dict[Tensor, Tensor]:
    averages: dict[Tensor, Tensor] = {}
    older, newer = [], []
    for p, gradient in gradients.items():
        buffer = inner.state[p].get("momentum_buffer")
        if buffer is None:  # the first gradient counts in full, as in torch
            averages[p] = inner.state[p]["momentum_buffer"] = gradient.detach().clone()
        else:
            averages[p] = buffer
            older.append(buffer)
            newer.append(gradient)
    momentum, dampening = group["momentum"], group["dampening"]
    if older and momentum == dampening:  # a true average: one pass over memory in place of two
        torch._foreach_lerp_(older, newer, 1 - momentum)
    elif older:
        torch._foreach_mul_(older, momentum)
        torch._foreach_add_(older, newer, alpha=1 - dampening)
    return averages
