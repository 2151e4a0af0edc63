"""The step from preconditioned gradients: clip, momentum, decoupled weight decay."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor


def clip(vectors: list[Tensor], products: list[Tensor], group: Mapping[str, Any]) -> None:
    """V ← νV in place, ν = min(1, √(κ/(lr² Σ ⟨V, ∇W⟩))); nothing without κ.

    Args:
        vectors: V.
        products: ⟨V, ∇W⟩ of each of them, scalars.
        group: ``lr`` and ``kl_clip``, κ or None.
    """
    if group["kl_clip"] is None or not products:
        return
    size = torch.stack(products).sum().clamp_min(0).mul_(float(group["lr"]) ** 2)
    factor = (float(group["kl_clip"]) / size).sqrt_().clamp_max(1.0)
    torch._foreach_mul_(vectors, factor)


def move(
    parameters: list[Tensor],
    vectors: list[Tensor],
    group: Mapping[str, Any],
    state: MutableMapping[Tensor, Any],
) -> None:
    """m ← μ m + V, θ ← (1 − lr·wd) θ − lr m.

    Args:
        parameters: θ, changed in place.
        vectors: V of each.
        group: ``lr``, ``momentum`` and ``weight_decay``.
        state: of the optimizer, which holds m as ``momentum_buffer``.
    """
    if not parameters:
        return
    lr, momentum = float(group["lr"]), float(group["momentum"])
    if momentum > 0:
        fresh = [p for p in parameters if "momentum_buffer" not in state[p]]
        for p in fresh:
            state[p]["momentum_buffer"] = torch.zeros_like(p)
        buffers = [state[p]["momentum_buffer"] for p in parameters]
        torch._foreach_mul_(buffers, momentum)
        torch._foreach_add_(buffers, vectors)
        vectors = buffers
    if group["weight_decay"] > 0:
        torch._foreach_mul_(parameters, 1 - lr * float(group["weight_decay"]))
    torch._foreach_add_(parameters, vectors, alpha=-lr)
