"""Several optimizers, each on parameters of its own, seen as one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gnewton.errors import InputError
from gnewton.optim.bound import BoundOptimizer, evaluated


class CompositeOptimizer(BoundOptimizer):
    """Steps each of its parts in turn; ``param_groups`` are theirs, so schedulers reach all of them.

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
        """Restore what :meth:`state_dict` returned."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self.parts for group in part.param_groups]


def muon_with_adamw(
    parameters: Sequence[tuple[str, Tensor]],
    *,
    lr: float = 1.0,
    momentum: float = 0.95,
    nesterov: bool = True,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> torch.optim.Optimizer:
    """Muon (Jordan et al. 2024) on the matrices, AdamW on every other tensor, on one scale of steps.

    torch's Muon takes tensors of two dimensions only. Its steps are scaled to the root mean square of
    AdamW's (Liu et al. 2025, arXiv 2502.16982), so that one learning rate serves both.

    Args:
        parameters: (name, tensor) pairs.
        lr: learning rate of both.
        momentum, nesterov: of Muon.
        weight_decay: decoupled, of both.
        betas, eps: of AdamW.

    Raises:
        InputError: where torch has no Muon.
    """
    if not hasattr(torch.optim, "Muon"):
        raise InputError(
            f"direction=muon: torch {torch.__version__} has no Muon; it needs torch 2.9 or later"
        )
    matrices = [(name, p) for name, p in parameters if p.ndim == 2]
    others = [(name, p) for name, p in parameters if p.ndim != 2]
    parts: list[torch.optim.Optimizer] = []
    if matrices:
        parts.append(
            torch.optim.Muon(
                matrices,
                lr=lr,
                weight_decay=weight_decay,
                momentum=momentum,
                nesterov=nesterov,
                adjust_lr_fn="match_rms_adamw",
            )
        )
    if others:
        parts.append(torch.optim.AdamW(others, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay))
    return CompositeOptimizer(parts)
