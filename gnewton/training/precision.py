"""Mixed precision: what a training pass is rounded to, and how a step is made of its gradients."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from gnewton.data.splits import Batch
from gnewton.optim.options import OptimizerRecipe

_DTYPES = {"full": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Precision:
    """The training passes under ``torch.autocast``; parameters, loss and optimizer keep the model's dtype.

    The smallest gradients of float16 would be 0, so the loss is multiplied by a scale that torch's
    ``GradScaler`` adapts; a step whose gradients overflow is left out. That decision makes the host wait for
    the device at every step.

    Args:
        kind: "full" (nothing is rounded), "bfloat16" or "float16".
        device: of the model.
    """

    def __init__(self, kind: str = "full", device: torch.device | str = "cpu") -> None:
        self._dtype = _DTYPES[kind]
        self._device = torch.device(device).type
        self._scaler = torch.amp.GradScaler(self._device) if kind == "float16" else None

    def rounded(self) -> AbstractContextManager[Any]:
        """Where the forward pass takes place."""
        if self._dtype is None:
            return nullcontext()
        return torch.autocast(self._device, self._dtype)

    def outputs(self, made: Tensor) -> Tensor:
        """The outputs of the model as the loss is to see them: that is never rounded."""
        return made if self._dtype is None else made.float()

    def backward(self, loss: Tensor) -> None:
        """Add the gradient, scaled, to ``.grad``."""
        (loss if self._scaler is None else self._scaler.scale(loss)).backward()

    def step(
        self,
        recipe: OptimizerRecipe,
        optimizer: torch.optim.Optimizer,
        closure: Callable[[], Tensor],
        batch: Batch,
    ) -> Tensor:
        """Make one step of ``optimizer`` on ``batch``, which ``closure`` evaluates; returns its loss."""
        if self._scaler is None:
            return recipe.step(optimizer, closure, batch)
        loss = closure()
        self._scaler.step(optimizer)
        self._scaler.update()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """The scale and its history."""
        return self._scaler.state_dict() if self._scaler is not None else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        if self._scaler is not None:
            self._scaler.load_state_dict(state)
