"""The state of training: a checkpoint holds it, and a fault may undo it."""

from __future__ import annotations

import copy
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from gnewton.training.checkpoint import random_states, set_random_states
from gnewton.training.ending import Outcome, Patience
from gnewton.training.evaluate import Score, WeightAverage
from gnewton.training.faults import LossCeiling, Watch
from gnewton.training.meter import Meter, StepLog
from gnewton.training.resources import Clocks, Throughput, peak_memory_mib
from gnewton.training.runlog import RateLog
from gnewton.training.training_step import Precision


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
