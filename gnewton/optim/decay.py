"""Weight decay of an optimizer that runs on shadow parameters, which stand at zero and so cannot decay."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from gnewton.errors import InputError

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
    """Where an optimizer puts its weight decay."""

    COUPLED = "coupled"
    """wd·θ is added to the gradient, as the derivative of (wd/2)‖θ‖²: SGD, Adam, RMSprop, NAdam …"""

    DECOUPLED = "decoupled"
    """lr·wd·θ is subtracted from the parameter besides the step: AdamW, Muon, or by their option."""


def decay_kind(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> DecayKind:
    """How ``optimizer`` applies ``group["weight_decay"]``.

    An optimizer that torch does not provide says so by ``decoupled_weight_decay`` in its param_groups.

    Raises:
        InputError: if that cannot be known.
    """
    if "decoupled_weight_decay" in group:
        return DecayKind.DECOUPLED if group["decoupled_weight_decay"] else DecayKind.COUPLED
    if isinstance(optimizer, _DECOUPLED):
        return DecayKind.DECOUPLED
    if isinstance(optimizer, _COUPLED):
        return DecayKind.COUPLED
    raise InputError(
        f"direction={type(optimizer).__name__} weight_decay={group['weight_decay']}: must be 0, or "
        "'decoupled_weight_decay' in its param_groups has to say how it is applied"
    )


def coupled_decay(groups: Iterable[tuple[torch.optim.Optimizer, dict[str, Any]]]) -> dict[Tensor, float]:
    """wd of the term (wd/2)‖θ‖² that a coupled decay adds to the objective, by tensor; the rest has none."""
    return {
        tensor: float(group["weight_decay"])
        for optimizer, group in groups
        if group.get("weight_decay") and decay_kind(optimizer, group) is DecayKind.COUPLED
        for tensor in group["params"]
    }


def add_coupled(
    gradients: Sequence[Tensor], parameters: Sequence[Tensor], decay: float, maximize: bool
) -> list[Tensor]:
    """g + wd·θ as new tensors: what the optimizer would have seen on the parameters themselves.

    With ``maximize`` torch turns the gradient round before it adds the decay, hence g − wd·θ.
    """
    return list(torch._foreach_add(list(gradients), list(parameters), alpha=-decay if maximize else decay))


@torch.no_grad()
def add_decoupled(directions: list[Tensor], parameters: Sequence[Tensor], factor: float) -> None:
    """u + lr·wd·θ in place, ``factor`` being lr·wd."""
    torch._foreach_add_(directions, list(parameters), alpha=factor)
