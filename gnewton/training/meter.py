"""The running training loss: kept on the device for progress and metrics.csv, as means for steps.csv."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gnewton.training.faults import StepFault


class Meter:
    """Collects the losses of training steps without waiting for the device; reads them in one transfer.

    Attributes:
        answers: how many answers a sample asks for.
        latest: the loss of the last step that was read.
    """

    def __init__(self) -> None:
        self._pending: list[Tensor] = []
        self._sizes: list[int] = []
        self._hits: Tensor | None = None
        self._first_step = 0
        self.answers = 1
        self.latest = math.nan
        self.reset()

    def reset(self) -> None:
        """Start a new average, for the next epoch."""
        self._loss_sum = 0.0
        self._samples = 0
        self._hits = None

    def record(self, step: int, loss: Tensor, correct: Tensor | None, samples: int) -> None:
        """Collect the mean loss and the right answers of training step ``step``, both still on the device."""
        if not self._pending:
            self._first_step = step
        self._pending.append(loss.detach())
        self._sizes.append(samples)
        if correct is not None:
            self._hits = correct if self._hits is None else self._hits + correct

    def read(self) -> list[float]:
        """The loss of each step since the last call.

        Raises:
            StepFault: naming the first training step whose loss is not finite.
        """
        if not self._pending:
            return []
        values: list[float] = torch.stack(self._pending).tolist()
        sizes, self._pending, self._sizes = self._sizes, [], []
        for offset, value in enumerate(values):
            if not math.isfinite(value):
                raise StepFault(f"the training loss is {value} at step {self._first_step + offset}")
        for value, size in zip(values, sizes, strict=True):
            self._loss_sum += value * size  # one by one: the sum must not depend on when it was read
        self._samples += sum(sizes)
        self.latest = values[-1]
        return values

    @property
    def loss(self) -> float:
        """Mean loss over the samples read since the last reset."""
        return self._loss_sum / self._samples if self._samples else math.nan

    def accuracy(self) -> float | None:
        """Share of right answers since the last reset; None where the task has no such notion."""
        if self._hits is None or not self._samples:
            return None
        return float(self._hits) / (self._samples * self.answers)

    @property
    def samples(self) -> int:
        """Samples read since the last reset."""
        return self._samples

    def state_dict(self) -> dict[str, float | int]:
        """What a resumed epoch needs for the mean over all its steps; call :meth:`read` before."""
        hits = 0 if self._hits is None else int(self._hits)
        return {
            "loss_sum": self._loss_sum,
            "samples": self._samples,
            "hits": hits,
            "counted": self._hits is not None,
            "latest": self.latest,
        }

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Continue the averages of an epoch from what :meth:`state_dict` returned."""
        self._pending, self._sizes = [], []
        self._loss_sum, self._samples = float(state["loss_sum"]), int(state["samples"])
        self._hits = torch.tensor(state["hits"], device=device) if state["counted"] else None
        self.latest = float(state["latest"])


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
