"""The state of training, with its running loss: a checkpoint holds it, and a fault may undo it."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from gnewton.training.checkpoint import random_states, set_random_states
from gnewton.training.ending import Outcome, Patience
from gnewton.training.evaluate import Score, WeightAverage
from gnewton.training.faults import LossCeiling, StepFault, Watch
from gnewton.training.resources import Clocks, Throughput, peak_memory_mib
from gnewton.training.runlog import RateLog
from gnewton.training.training_step import Precision, StepResult


class TrainingState:
    """Everything that training steps and evaluations change.

    Args:
        model, optimizer, scheduler: of the run.
        precision: of the training passes; float16 has a scale that adapts.
        ceiling: judges the training losses.
        rate_log: collects updates of the rates; None for optimizers without rates.
        steps_per_epoch: training steps in an epoch.
        average: of the weights; None: there is none.

    Attributes:
        epoch: whole epochs finished.
        step: training steps finished.
        best: the best validation score so far, less is better; None before the first.
        outcome: how the run stands.
        patience: how long the metric of an early stop has stood still.
        meter: the running loss of the epoch.
        step_log: the loss since the last row of steps.csv.
        throughput: samples per second since the last row of metrics.csv.
        watch: finds numbers that are not finite.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scheduler: Any,
        *,
        precision: Precision,
        ceiling: LossCeiling,
        rate_log: RateLog | None,
        steps_per_epoch: int,
        average: WeightAverage | None = None,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.ceiling = ceiling
        self.average = average
        self.steps_per_epoch = steps_per_epoch
        self.epoch = 0
        self.step = 0
        self.best: float | None = None
        self.outcome = Outcome()
        self.patience = Patience()
        self.meter = Meter()
        self.step_log = StepLog()
        self.throughput = Throughput()
        self.watch = Watch(model, optimizer, rate_log)
        self._precision = precision
        self._rate_log = rate_log
        self._device = next(model.parameters()).device

    @property
    def epochs(self) -> float:
        """Epochs finished, with the fraction of the one under way."""
        return round(self.step / self.steps_per_epoch, 4)

    def count(self, result: StepResult) -> None:
        """Count a training step that has been made; nothing waits for the device."""
        self.meter.record(self.step, result.loss, result.correct, result.samples)
        self.throughput.add(result.samples)
        self.step += 1
        if self.average is not None:
            self.average.update()

    def improves(self, score: Score) -> bool:
        """Whether a validation score is the best so far, which it is from now on."""
        value = score.loss if score.accuracy is None else -score.accuracy
        if value is None or not math.isfinite(value) or (self.best is not None and value >= self.best):
            return False
        self.best = value
        return True

    def steps_row(self, clocks: Clocks) -> dict[str, Any] | None:
        """A row of steps.csv for the steps since the last one; None without any."""
        lr = float(self.optimizer.param_groups[0]["lr"])
        return self.step_log.take(self.step, lr, clocks.seconds["train"])

    def row(self, scores: dict[str, Score], clocks: Clocks) -> dict[str, Any]:
        """A row of metrics.csv; the throughput counts anew from here."""
        row: dict[str, Any] = {
            "epoch": self.epochs,
            "step": self.step,
            "running_loss": self.meter.loss if self.meter.samples else None,
            "running_accuracy": self.meter.accuracy(),
        }
        for name, score in scores.items():
            row[f"{name}_loss"], row[f"{name}_accuracy"] = score.loss, score.accuracy
        row["lr"] = float(self.optimizer.param_groups[0]["lr"])
        row |= {f"{name}_seconds": round(seconds, 6) for name, seconds in clocks.seconds.items()}
        row["samples_per_second"] = self.throughput.take(clocks.seconds["train"])
        row["peak_memory_mib"] = peak_memory_mib(self._device)
        return row

    def state_dict(self) -> dict[str, Any]:
        """The state as a checkpoint holds it; tensors are those of training, not copies."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "passes": self._precision.state_dict(),
            "epoch": self.epoch,
            "step": self.step,
            "meter": self.meter.state_dict(),
            "step_log": self.step_log.state_dict(),
            "ceiling": self.ceiling.state_dict(),
            "best": self.best,
            "outcome": asdict(self.outcome),
            "patience": self.patience.state_dict(),
            "since_row": self.throughput.state_dict(),
            "updates": self._rate_log.updates if self._rate_log is not None else 0,
            "average": self.average.state_dict() if self.average is not None else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what :meth:`state_dict` returned."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.watch.restart()
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.scheduler.load_state_dict(state["scheduler"])
        self._precision.load_state_dict(state["passes"])
        self.epoch, self.step = int(state["epoch"]), int(state["step"])
        self.meter.load_state_dict(state["meter"], self._device)
        self.step_log.load_state_dict(state["step_log"])
        self.ceiling.load_state_dict(state["ceiling"])
        self.best, self.outcome = state["best"], Outcome(**state["outcome"])
        self.patience.load_state_dict(state["patience"])
        self.throughput.load_state_dict(state["since_row"])
        if self._rate_log is not None:
            self._rate_log.rewind(int(state["updates"]))

    def snapshot(self) -> dict[str, Any]:
        """A copy of the state and the random streams, on the device, for :meth:`restore`."""
        return {**copy.deepcopy(self.state_dict()), "random": random_states(self._device)}

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Undo all steps since a snapshot; rows already written to the logs stay."""
        self.load_state_dict(copy.deepcopy(snapshot))
        set_random_states(snapshot["random"], self._device)


class Meter:
    """Collects the losses of training steps without waiting for the device; reads them in one transfer.

    Attributes:
        answers: number of answers per sample.
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
