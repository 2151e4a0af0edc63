"""The training passes of a run: through which code they go, and to what they are rounded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from gnewton.data.splits import Batch
from gnewton.optim.options import OptimizerRecipe
from gnewton.tasks import Task
from gnewton.training.gradient import add_gradient
from gnewton.training.precision import Precision


class TrainingPasses:
    """Forward and backward passes of a model, and the steps made of their gradients.

    Args:
        model: the network; its parameters stay what they are.
        precision: "full", "bfloat16" or "float16", see :class:`~gnewton.training.precision.Precision`.
        device: of the model.
        compiled: whether the passes go through ``torch.compile``, from the first one on.
    """

    def __init__(self, model: nn.Module, precision: str, device: torch.device, *, compiled: bool) -> None:
        self._network: Callable[[Tensor], Tensor] = torch.compile(model) if compiled else model
        self._precision = Precision(precision, device)

    def add_gradient(self, task: Task, batch: Batch, microbatch: int | None) -> tuple[Tensor, Tensor | None]:
        """Loss, right answers and gradient of a batch (:func:`~gnewton.training.gradient.add_gradient`)."""
        return add_gradient(self._network, task, batch, microbatch, self._precision)

    def step(
        self,
        recipe: OptimizerRecipe,
        optimizer: torch.optim.Optimizer,
        closure: Callable[[], Tensor],
        batch: Batch,
    ) -> Tensor:
        """Make one step of ``optimizer`` on ``batch``, which ``closure`` evaluates; returns its loss."""
        return self._precision.step(recipe, optimizer, closure, batch)

    def state_dict(self) -> dict[str, Any]:
        """What a scale of the loss has come to."""
        return self._precision.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self._precision.load_state_dict(state)
