"""The fresh part v of a direction u, added by the current gradient, and the total weight of such parts in u.

An optimizer with memory proposes a weighted sum of parts, u_t = Σ_k w_k v_{t−k}, with v_t made from the
gradient of step t alone: the gradient itself for SGD, the gradient over its root mean square for Adam, the
preconditioned gradient for K-FAC. Rates for v, found on its own batch, fit the step u/w with w = Σ_k w_k,
whose length does not grow while the memory fills (docs/method.md, "The fresh direction").

Other optimizers support this by an attribute ``keeps_fresh``: while it is True, ``step()`` stores v by
parameter, as it would be subtracted at momentum 0, in an attribute ``fresh``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from gnewton.optim.inner_optimizers import DecayKind, add_decoupled, decay_kind

Group = Mapping[str, Any]
Gradients = Mapping[Tensor, Tensor]
Parts = dict[Tensor, Tensor]


def fresh_parts(optimizer: torch.optim.Optimizer, group: Group, gradients: Gradients) -> Parts | None:
    """v of each parameter of a group right after a step, new tensors or the gradients themselves.

    Args:
        optimizer: has just made a step from ``gradients``.
        group: one of its ``param_groups``.
        gradients: the gradients of that step, coupled weight decay included.

    Returns:
        v by parameter; None if the parts of the optimizer are not known.
    """
    if getattr(optimizer, "keeps_fresh", False):
        kept: Parts = optimizer.fresh  # type: ignore[attr-defined]
        return {p: kept[p] for p in group["params"] if p in kept}
    rule = next((rule for kind, rule in _RULES if isinstance(optimizer, kind)), None)
    if rule is None:
        return None
    with torch.no_grad():
        descent = {p: gradients[p] for p in group["params"] if p in gradients}
        if group.get("maximize"):
            descent = {p: -g for p, g in descent.items()}
        parts, lr = rule(optimizer, group, descent), float(group["lr"])
        return parts if lr == 1 else {p: lr * v for p, v in parts.items()}


def add_decay(
    optimizer: torch.optim.Optimizer, group: Group, parts: Parts, positions: Mapping[Tensor, Tensor]
) -> Parts:
    """v with the decoupled weight decay of a step; ``positions`` maps shadows to parameters."""
    decay = group.get("weight_decay")
    if not decay or decay_kind(optimizer, dict(group)) is not DecayKind.DECOUPLED:
        return parts
    moved = {p: v.clone() for p, v in parts.items()}
    if moved:
        factor = float(group["lr"]) * float(decay)
        add_decoupled(list(moved.values()), [positions[p] for p in moved], factor)
    return moved


def weight(optimizer: torch.optim.Optimizer, group: Group, steps: int) -> float:
    """w = Σ_k w_k after ``steps`` steps; 1 for bias-corrected averages and for unknown optimizers."""
    momentum = float(group.get("momentum") or 0.0)
    if steps < 1 or momentum == 0:
        return 1.0
    if isinstance(optimizer, torch.optim.SGD):
        old = momentum ** (steps - 1)  # the first gradient counts in full
        total = old + (1 - float(group["dampening"])) * (1 - old) / (1 - momentum)
        return 1 + momentum * total if group["nesterov"] else total
    if isinstance(optimizer, torch.optim.RMSprop) or hasattr(optimizer, "keeps_fresh"):
        return (1 - momentum**steps) / (1 - momentum)
    return 1.0


def _gradient(optimizer: torch.optim.Optimizer, group: Group, gradients: Gradients) -> Parts:
    """g."""
    return dict(gradients)


def _adam(optimizer: torch.optim.Optimizer, group: Group, gradients: Gradients) -> Parts:
    """g / (√v̂ + ε), with v̂ the bias-corrected mean square."""
    parts = {}
    for p, gradient in gradients.items():
        state = optimizer.state[p]
        square = state["max_exp_avg_sq"] if group.get("amsgrad") else state["exp_avg_sq"]
        correction = 1 - group["betas"][1] ** float(state["step"])
        root = (square / correction).sqrt_().add_(group["eps"])
        parts[p] = gradient / root
    return parts


def _rmsprop(optimizer: torch.optim.Optimizer, group: Group, gradients: Gradients) -> Parts:
    """g / (√v + ε), with v the mean square."""
    parts = {}
    for p, gradient in gradients.items():
        state = optimizer.state[p]
        square = state["square_avg"]
        if group["centered"]:
            square = square - state["grad_avg"] ** 2
        parts[p] = gradient / square.sqrt().add_(group["eps"])
    return parts


_RULES: tuple[tuple[type[torch.optim.Optimizer], Callable[..., Parts]], ...] = (
    (torch.optim.SGD, _gradient),
    (torch.optim.Adam, _adam),
    (torch.optim.AdamW, _adam),
    (torch.optim.NAdam, _adam),
    (torch.optim.RMSprop, _rmsprop),
)
