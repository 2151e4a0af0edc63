"""Optimizers that propose directions: their parts, state and weight decay, and the fresh part of a step.

An optimizer with memory proposes a weighted sum of parts, u_t = Σ_k w_k v_{t−k}, with v_t made from the
gradient of step t alone: the gradient itself for SGD, the gradient over its root mean square for Adam, the
preconditioned gradient for K-FAC. Rates for v, measured on its own batch, fit the step u/w with w = Σ_k w_k,
whose length does not grow while the memory fills (docs/method.md, "The fresh direction").

Other optimizers support this by an attribute ``keeps_fresh``: while it is True, ``step()`` stores v by
parameter, as it would be subtracted at momentum 0, in an attribute ``fresh``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from gnewton.errors import InputError
from gnewton.optim.bound_optimizer import BoundOptimizer, evaluated

_COUPLED = (
    torch.optim.SGD,
    torch.optim.Adam,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.RMSprop,
    torch.optim.Adagrad,
    torch.optim.Adadelta,
    torch.optim.Adamax,
)
_DECOUPLED: tuple[type, ...] = (torch.optim.AdamW,)
if hasattr(torch.optim, "Muon"):
    _DECOUPLED = (*_DECOUPLED, torch.optim.Muon)


class DecayKind(Enum):
    """The way an optimizer applies weight decay."""

    COUPLED = "coupled"
    """wd·θ is added to the gradient, as the derivative of (wd/2)‖θ‖²: SGD, Adam, RMSprop, NAdam …"""

    DECOUPLED = "decoupled"
    """lr·wd·θ is subtracted from the parameter in addition to the step: AdamW, Muon, or by an option."""


def decay_kind(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> DecayKind:
    """The way ``optimizer`` applies ``group["weight_decay"]``.

    An optimizer from outside torch declares it by ``decoupled_weight_decay`` in its param_groups.

    Raises:
        InputError: if the way is unknown.
    """
    if "decoupled_weight_decay" in group:
        return DecayKind.DECOUPLED if group["decoupled_weight_decay"] else DecayKind.COUPLED
    if isinstance(optimizer, _DECOUPLED):
        return DecayKind.DECOUPLED
    if isinstance(optimizer, _COUPLED):
        return DecayKind.COUPLED
    raise InputError(
        f"direction={type(optimizer).__name__} weight_decay={group['weight_decay']}: must be 0, or "
        "'decoupled_weight_decay' in its param_groups must say how it is applied"
    )


def coupled_decay(groups: Iterable[tuple[torch.optim.Optimizer, dict[str, Any]]]) -> dict[Tensor, float]:
    """wd of the term (wd/2)‖θ‖² that a coupled decay adds to the objective, by tensor; others have none."""
    return {
        tensor: float(group["weight_decay"])
        for optimizer, group in groups
        if group.get("weight_decay") and decay_kind(optimizer, group) is DecayKind.COUPLED
        for tensor in group["params"]
    }


def add_coupled(
    gradients: Sequence[Tensor], parameters: Sequence[Tensor], decay: float, maximize: bool
) -> list[Tensor]:
    """g + wd·θ as new tensors: the gradient that the optimizer would see on the parameters themselves.

    With ``maximize`` torch negates the gradient before it adds the decay, hence g − wd·θ.
    """
    return list(torch._foreach_add(list(gradients), list(parameters), alpha=-decay if maximize else decay))


@torch.no_grad()
def add_decoupled(directions: list[Tensor], parameters: Sequence[Tensor], factor: float) -> None:
    """u + lr·wd·θ in place, ``factor`` being lr·wd."""
    torch._foreach_add_(directions, list(parameters), alpha=factor)


def inner_groups(inner: torch.optim.Optimizer) -> list[tuple[torch.optim.Optimizer, dict[str, Any]]]:
    """The parameter groups of an optimizer or of its parts, each with its optimizer."""
    return [(part, group) for part in parts(inner) for group in part.param_groups]


def parts(inner: torch.optim.Optimizer) -> tuple[torch.optim.Optimizer, ...]:
    """The optimizers that an optimizer is composed of; usually itself alone."""
    return getattr(inner, "parts", (inner,))


def restore(inner: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load the state of an optimizer, bit for bit."""
    inner.load_state_dict(state)
    for part, saved in zip(parts(inner), state.get("parts", [state]), strict=True):
        restore_scalars(part, saved)


def restore_scalars(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Restore the scalars in the state, such as NAdam's ``mu_product``, in their own dtype.

    torch rounds every floating-point entry to the dtype of its parameter, which changes the next step.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    numbers = [number for group in saved["param_groups"] for number in group["params"]]
    for number, parameter in zip(numbers, parameters, strict=True):
        for key, value in saved["state"].get(number, {}).items():
            if isinstance(value, Tensor) and value.dim() == 0:
                state = optimizer.state[parameter]
                state[key] = value.to(state[key].device, copy=True)


class CompositeOptimizer(BoundOptimizer):
    """Several optimizers as one, stepped in turn; ``param_groups`` are theirs, so schedulers reach them all.

    Args:
        parts: optimizers that share no parameter.
    """

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        self.parts = tuple(parts)
        parameters = [p for part in self.parts for group in part.param_groups for p in group["params"]]
        super().__init__(parameters, {})
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step of every part."""
        loss = evaluated(closure)
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """The states of the parts, in order."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the value of :meth:`state_dict`."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self.parts for group in part.param_groups]


def stepped(inner: torch.optim.Optimizer) -> tuple[torch.optim.Optimizer, ...]:
    """The optimizers whose steps make one of ``inner``: the parts of a composite that no hook watches."""
    return parts(inner) if type(inner) is CompositeOptimizer and not hooked(inner) else (inner,)


def readable(inner: torch.optim.Optimizer) -> bool:
    """Whether the step of ``inner`` can be read off, without moving a parameter (:func:`advance`).

    That is so for SGD that subtracts exactly its momentum buffers, or the gradients, and for an optimizer
    with an attribute ``readable``, while it is True, and a method ``advance``.
    """
    if hasattr(inner, "readable"):
        return bool(inner.readable)
    return type(inner) is torch.optim.SGD and not hooked(inner) and all(map(_is_plain, inner.param_groups))


def hooked(inner: torch.optim.Optimizer) -> bool:
    """Whether hooks watch the steps of an optimizer, which must then be made as they are."""
    return bool(inner._optimizer_step_pre_hooks or inner._optimizer_step_post_hooks)


def _is_plain(group: dict[str, Any]) -> bool:
    if not isinstance(group["lr"], (int, float)) or group["lr"] != 1:
        return False
    return not (group["nesterov"] or group["maximize"] or group["differentiable"])


def buffers(inner: torch.optim.Optimizer) -> list[Tensor]:
    """The momentum buffers of ``inner`` so far."""
    held = (state.get("momentum_buffer") for state in inner.state.values())
    return [buffer for buffer in held if buffer is not None]


@torch.no_grad()
def advance(inner: torch.optim.Optimizer) -> dict[Tensor, Tensor]:
    """Advance the momentum buffers of ``inner`` by one step from the gradients, without weight decay.

    No parameter has to move for this step at learning rate 1.

    Returns:
        The step that would be subtracted, by parameter; those without gradient are missing. The tensors are
        the buffers or the gradients themselves and must not be written to.
    """
    steps: dict[Tensor, Tensor] = {}
    if hasattr(inner, "readable"):
        steps |= inner.advance()  # type: ignore[attr-defined]
        return steps
    for group in inner.param_groups:
        gradients = {p: p.grad for p in group["params"] if p.grad is not None}
        steps |= gradients if group["momentum"] == 0 else _averages(inner, group, gradients)
    return steps


def _averages(
    inner: torch.optim.Optimizer, group: dict[str, Any], gradients: dict[Tensor, Tensor]
) -> dict[Tensor, Tensor]:
    averages: dict[Tensor, Tensor] = {}
    older, newer = [], []
    for p, gradient in gradients.items():
        buffer = inner.state[p].get("momentum_buffer")
        if buffer is None:  # as in torch, the first gradient counts in full
            averages[p] = inner.state[p]["momentum_buffer"] = gradient.detach().clone()
        else:
            averages[p] = buffer
            older.append(buffer)
            newer.append(gradient)
    momentum, dampening = group["momentum"], group["dampening"]
    if older and momentum == dampening:  # a true average: one pass over memory instead of two
        torch._foreach_lerp_(older, newer, 1 - momentum)
    elif older:
        torch._foreach_mul_(older, momentum)
        torch._foreach_add_(older, newer, alpha=1 - dampening)
    return averages


Group = Mapping[str, Any]
Gradients = Mapping[Tensor, Tensor]
Parts = dict[Tensor, Tensor]


def fresh_parts(optimizer: torch.optim.Optimizer, group: Group, gradients: Gradients) -> Parts | None:
    """Return v of each parameter of a group right after a step: new tensors, or the gradients themselves.

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
    """v = g, the gradient itself."""
    return dict(gradients)


def _adam(optimizer: torch.optim.Optimizer, group: Group, gradients: Gradients) -> Parts:
    """v = g / (√ŝ + ε), where ŝ is the bias-corrected mean square."""
    parts = {}
    for p, gradient in gradients.items():
        state = optimizer.state[p]
        square = state["max_exp_avg_sq"] if group.get("amsgrad") else state["exp_avg_sq"]
        correction = 1 - group["betas"][1] ** float(state["step"])
        root = (square / correction).sqrt_().add_(group["eps"])
        parts[p] = gradient / root
    return parts


def _rmsprop(optimizer: torch.optim.Optimizer, group: Group, gradients: Gradients) -> Parts:
    """v = g / (√s + ε), where s is the mean square."""
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
