"""The training loss by step: the mean over each logging period, for steps.csv."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class StepLog:
    """Adds up the losses of training steps that have been read, and makes a row of steps.csv of them."""

    def __init__(self) -> None:
        self._loss_sum = 0.0
        self._count = 0

    def add(self, losses: Sequence[float]) -> None:
        """Add the losses of steps that were read."""
        for loss in losses:  # one by one: the sum must not depend on when they were read
            self._loss_sum += loss
        self._count += len(losses)

    def take(self, step: int, lr: float, train_seconds: float) -> dict[str, Any] | None:
        """The row for the steps since the last one, up to ``step``; None without any."""
        if not self._count:
            return None
        row = {
            "step": step,
            "loss": self._loss_sum / self._count,
            "lr": lr,
            "train_seconds": round(train_seconds, 6),
        }
        self._loss_sum, self._count = 0.0, 0
        return row

    def state_dict(self) -> dict[str, float | int]:
        """What has been added up since the last row."""
        return {"loss_sum": self._loss_sum, "count": self._count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what :meth:`state_dict` returned."""
        self._loss_sum, self._count = float(state["loss_sum"]), int(state["count"])
