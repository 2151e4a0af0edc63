"""The training loop, one for every optimizer."""

from __future__ import annotations

import copy
import logging
import math
import signal
import time
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gnewton.data.splits import Batch, DataSet
from gnewton.errors import Diverged, Interrupted
from gnewton.loggers import Logger
from gnewton.optim.options import OptimizerRecipe
from gnewton.runfiles import BEST, DONE, LAST, LIMIT, TARGET
from gnewton.training.clocks import Clocks
from gnewton.training.divergence import SAMPLES, LossCeiling
from gnewton.training.evaluate import Score, evaluate, evaluate_splits
from gnewton.training.exhaustion import memory_suffices
from gnewton.training.interval import EPOCHS, SECONDS, STEPS, Interval
from gnewton.training.journal import Journal
from gnewton.training.memory import forget_peak_memory, peak_memory_mib
from gnewton.training.meter import Meter
from gnewton.training.nonfinite import StepFault, Watch
from gnewton.training.outcome import Outcome, reached, require_finite
from gnewton.training.passes import TrainingPasses
from gnewton.training.progress import Progress, summary_line
from gnewton.training.randomness import random_states, set_random_states
from gnewton.training.ratelog import RateLog
from gnewton.training.recovery import RECOVERIES
from gnewton.training.settings import TrainerSettings
from gnewton.training.signals import StopSignals
from gnewton.training.world import World

log = logging.getLogger("gnewton")


class Trainer:
    """Trains a model with an optimizer on a data set and writes metrics.csv, rates.csv and checkpoints.

    Args:
        model, data, optimizer: built and on their device.
        recipe: the options the optimizer was built from; it knows how a step of it is made.
        settings: the options of the loop.
        folder: the run folder; None: this process writes nothing.
        rate_log: where updates of the rates are kept until they are written; None for other optimizers.
        identity: what a checkpoint must agree on to be continued, such as the hash of the configuration.
        world: the processes that share every batch; this one alone by default.
        logger: gets the rows of the CSV files as well.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        data: DataSet,
        optimizer: torch.optim.Optimizer,
        recipe: OptimizerRecipe,
        settings: TrainerSettings,
        folder: Path | None,
        rate_log: RateLog | None,
        identity: dict[str, str],
        world: World | None = None,
        logger: Logger | None = None,
    ) -> None:
        self.model = model
        self.data = data
        self.optimizer = optimizer
        self.recipe = recipe
        self.settings = settings
        self.device = next(model.parameters()).device
        self._passes = TrainingPasses(model, settings.precision, self.device, compiled=settings.compile)
        self.clocks = Clocks(self.device)
        self.scheduler = recipe.schedule.build(optimizer, settings.epochs)
        self.batch_size = None if recipe.full_batch else settings.batch_size
        self.steps_per_epoch = data.train.steps(self.batch_size)
        self.epoch = 0  # whole epochs finished
        self.step = 0  # training steps finished
        self.world = world if world is not None else World()
        self.identity = identity
        self.folder = folder
        self._journal = Journal(folder, with_rates=rate_log is not None, logger=logger)
        self._rate_log = rate_log
        self._meter = Meter()
        self._ceiling = LossCeiling(settings.divergence, self.steps_per_epoch)
        self._watch = Watch(model, optimizer, rate_log)
        self._recovery = RECOVERIES[settings.on_nonfinite](settings)
        self.outcome = Outcome()
        self._best: float | None = None
        self._counted_correct: Tensor | None = None
        self._seconds_at_row = 0.0
        self._samples_since_row = 0
        self._interval = Interval.parse(settings.checkpoint_every)
        self._saved_at = 0.0  # wall clock of the last checkpoint
        self._resumed = False

    def fit(self) -> Outcome:
        """Train until the epochs, a limit or the target is reached.

        Returns:
            how it ended.

        Raises:
            Diverged: at a number that is not finite, or a loss far above that of the start, where
                ``trainer.on_nonfinite`` does not help; checkpoint/last.pt is from before it.
            Interrupted: by a signal, after the step in hand and a checkpoint.
        """
        forget_peak_memory(self.device)
        total = self.settings.epochs * self.steps_per_epoch
        total = min(total, self.settings.max_steps or total)
        with ExitStack() as stack:
            stack.enter_context(self._journal)
            signals = stack.enter_context(StopSignals())
            progress = stack.enter_context(Progress(self.settings.progress, total, self.step))
            if self._ceiling.lacks_start:
                self._take_start(signals)
            if not self._resumed:
                self._checkpoint(LAST)
            self._saved_at = time.monotonic()
            self.outcome.status = self._ended_before()
            try:
                while self.epoch < self.settings.epochs and self.outcome.status == DONE:
                    self._run_epoch(signals, progress)
            finally:
                self.clocks.pause_training()
                self._write_rates()
        return self.outcome

    def _take_start(self, signals: StopSignals) -> None:
        """The loss that later ones are compared with: of many samples, as that of a batch may be any."""
        limit = min(SAMPLES, self.settings.evaluation.max_samples or SAMPLES)
        size = self.settings.evaluation.batch_size
        option = f"trainer.evaluation.batch_size={size}"
        with (
            self.clocks.measure("evaluation"),
            memory_suffices(self.device, "an evaluation", option),
        ):
            score = evaluate(
                *(self.model, self.data.task, self.data.train, size, limit),
                between=lambda: self._stop_if(signals.received),
            )
        self._ceiling.start = score.loss

    def _ended_before(self) -> str:
        """The status that a resumed run has already ended with, under its present limits; else "done"."""
        row = self.outcome.metrics
        if not row or row["step"] != self.step:
            return DONE
        if reached(self.settings.target, row):
            return TARGET
        return LIMIT if self._limit_reached() else DONE

    def _run_epoch(self, signals: StopSignals, progress: Progress) -> None:
        """Train and evaluate for the rest of an epoch, or go back as far as a fault asks for."""
        try:
            self.outcome.status = self._train_epoch(signals, progress)
            self._finish_epoch(signals)
        except Diverged as fault:
            self.clocks.pause_training()
            self._recovery.recover(self, fault)
            self.outcome.status = DONE

    def _train_epoch(self, signals: StopSignals, progress: Progress) -> str:
        """The steps of an epoch that are not made yet; the status with which it ended."""
        status = DONE
        skip = self.step - self.epoch * self.steps_per_epoch
        self.model.train()
        if skip == 0:
            self._meter.reset()
        batches = self.data.train.epoch(self.epoch, self.batch_size, skip=skip)
        if self._resumed and self._limit_reached():  # interrupted while it evaluated at the limit
            batches, status = iter(()), LIMIT
        self._recovery.sound(self)
        self.clocks.resume_training()
        for whole in batches:
            self._recovery.step(self, partial(self._make_step, whole))
            progress.advance()
            if self.step % self.settings.log_every == 0:
                self._report(progress)
            if self._stop_wanted(signals.received):
                status = LIMIT
                break
            if self._checkpoint_due():
                self._checkpoint(LAST)
        self._report(progress)
        self.clocks.pause_training()
        self._require_below_ceiling(ended=status == LIMIT or self.epoch + 1 == self.settings.epochs)
        return status

    def _require_below_ceiling(self, *, ended: bool) -> None:
        """Refuse a loss that is far above that of the start, at the end of an epoch or of the run.

        Raises:
            Diverged: in every process, if any of them finds it so.
        """
        above = self._ceiling.is_exceeded() if ended else self._ceiling.is_exceeded_for_long()
        if self._agreed(above):
            raise Diverged(self._ceiling.describe(self.step, ended=ended))

    def _agreed(self, wanted: bool) -> bool:
        """Whether any process wants something: all have to do the same."""
        return bool(self.world.agree(int(wanted), self.device))

    def _make_step(self, whole: Batch) -> None:
        batch = self.world.share(whole)
        self._counted_correct = None
        with memory_suffices(self.device, f"training step {self.step}", self.settings.sizes()):
            loss = self._passes.step(
                self.recipe, self.optimizer, partial(self._forward_backward, batch), batch
            )
        samples = max(len(whole[0]), 1)
        self._meter.record(self.step, loss, self._counted_correct, samples)
        self._samples_since_row += samples
        self.step += 1

    def _checkpoint_due(self) -> bool:
        """Whether the steps or seconds since the last checkpoint call for one."""
        if self._interval.unit == SECONDS:
            if self.world.size > 1 and self.step % self.settings.log_every:
                return False
            due = self._interval.due_after(SECONDS, time.monotonic() - self._saved_at)
            return bool(self.world.agree(int(due), self.device))
        return self._interval.due_after(STEPS, self.step)

    def _forward_backward(self, batch: Batch) -> Tensor:
        """The mean loss on a batch, with its gradient in ``.grad``.

        The right answers are counted at the first evaluation of a step only: L-BFGS makes several.
        """
        self.optimizer.zero_grad(set_to_none=True)
        loss, correct = self._passes.add_gradient(self.data.task, batch, self.settings.microbatch)
        loss, correct = self.world.combine(self.model, loss, correct, len(batch[0]))
        if self._counted_correct is None:
            self._counted_correct = correct
        return loss

    def _report(self, progress: Progress) -> None:
        """Read the losses and write what is due."""
        self.read()
        with self.clocks.measure("logging"):
            progress.show(self._meter.latest, self._rates())

    def read(self) -> None:
        """Read the losses and whether all is finite: the only place where training waits for the device.

        Raises:
            StepFault: if something is not, and ``trainer.on_nonfinite`` does not go on from it as it is.
        """
        fault = self._watch.fault(self.step)
        try:
            self._ceiling.record(self._meter.read())
        except StepFault as found:  # says more: it names the step
            fault = found
        if self.world.agree(int(fault is not None), self.device):  # buffers differ between processes
            fault = fault or StepFault(f"another process met what is not finite before step {self.step}")
            if not self._recovery.tolerates(self, fault):
                raise fault
        with self.clocks.measure("logging"):
            self._write_rates()
        self._recovery.sound(self)

    def _write_rates(self) -> None:
        if self._rate_log is not None:
            self._journal.rates(self._rate_log.take())

    def _finish_epoch(self, signals: StopSignals) -> None:
        """Evaluate, log and checkpoint after an epoch, or after the part of it that a limit left."""
        settings, outcome = self.settings, self.outcome
        whole = self.step == (self.epoch + 1) * self.steps_per_epoch
        epochs = self.epoch + whole
        last = epochs >= settings.epochs or outcome.status != DONE
        outcome.epoch, outcome.step = round(self.step / self.steps_per_epoch, 4), self.step
        scores = None
        if last or epochs % settings.evaluation.every == 0:
            with self.clocks.measure("evaluation"):
                self.world.share_buffers(self.model)
                scores = evaluate_splits(
                    self.model, self.data, settings.evaluation, lambda: self._stop_if(signals.received)
                )
            lr = float(self.optimizer.param_groups[0]["lr"])  # of this epoch, not of the next
            with self.clocks.measure("logging"):
                outcome.metrics = row = self._row(scores, lr)
                self._journal.metrics(row)
                log.info(summary_line(row))
            require_finite(row)
        if whole:  # only now: interrupted before, a resumed run evaluates this epoch again
            self.recipe.schedule.advance(self.scheduler, self._meter.loss)
            self.epoch = epochs
        if scores is not None:
            self._keep_best(scores["validation"])
            outcome.target = reached(settings.target, outcome.metrics)
            if outcome.target is not None:
                outcome.status, last = TARGET, True
                message = "target reached: %s %.6g after %.3f s of training"
                log.info(message, *(outcome.target[key] for key in ("metric", "reached", "train_seconds")))
        if last or (whole and self._interval.due_after(EPOCHS, epochs)):
            self._checkpoint(LAST, whatever=last)

    def _row(self, scores: dict[str, Score], lr: float) -> dict[str, Any]:
        seconds = self.clocks.seconds
        row: dict[str, Any] = {
            "epoch": round(self.step / self.steps_per_epoch, 4),
            "step": self.step,
            "running_loss": self._meter.loss,
            "running_accuracy": self._meter.accuracy(),
        }
        for name, score in scores.items():
            row[f"{name}_loss"], row[f"{name}_accuracy"] = score.loss, score.accuracy
        row["lr"] = lr
        row |= {f"{name}_seconds": round(seconds[name], 6) for name in seconds}
        spent = seconds["train"] - self._seconds_at_row
        row["samples_per_second"] = round(self._samples_since_row / spent, 3) if spent > 0 else None
        row["peak_memory_mib"] = peak_memory_mib(self.device)
        self._seconds_at_row, self._samples_since_row = seconds["train"], 0
        return row

    def _keep_best(self, score: Score) -> None:
        value = score.loss if score.accuracy is None else -score.accuracy
        if self._agreed(self._ceiling.is_exceeded()):
            return
        if value is not None and math.isfinite(value) and (self._best is None or value < self._best):
            self._best = value
            self._checkpoint(BEST)

    def _checkpoint(self, name: str, *, whatever: bool = False) -> None:
        """Write a checkpoint, unless the one before it is worth more.

        It is where something is not finite and, unless ``whatever`` is asked for, while the loss is far above
        that of the start: so a run that ends as diverged is left at a state from before that.
        """
        self.read()
        if not whatever and self._agreed(self._ceiling.is_exceeded_by_the_latest()):
            return
        with self.clocks.measure("checkpoint"):
            self._journal.checkpoint(name, self.state_dict())
        self._saved_at = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        """Everything a run needs to continue as if it had not stopped. Every process has to call it."""
        return {
            "identity": self.identity,
            **self._state(),
            "clocks": self.clocks.state_dict(),
            "logs": self._journal.lengths(),
            "random": self.world.gather(random_states(self.device)),
        }

    def _state(self) -> dict[str, Any]:
        """What training itself consists of."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "passes": self._passes.state_dict(),
            "epoch": self.epoch,
            "step": self.step,
            "meter": self._meter.state_dict(),
            "ceiling": self._ceiling.state_dict(),
            "best": self._best,
            "outcome": asdict(self.outcome),
            "since_row": {"seconds": self._seconds_at_row, "samples": self._samples_since_row},
            "updates": self._rate_log.updates if self._rate_log is not None else 0,
        }

    def snapshot(self) -> dict[str, Any]:
        """A copy of what training consists of, on its device, for :meth:`restore`."""
        return {**copy.deepcopy(self._state()), "random": random_states(self.device)}

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Undo what was done since a snapshot; what was written to the logs stays."""
        self._load(copy.deepcopy(snapshot))
        set_random_states(snapshot["random"], self.device)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what :meth:`state_dict` returned; rows written after it leave the logs.

        Raises:
            InputError: if the logs have lost rows that were there. Nothing has changed then.
        """
        self._journal.check(state["logs"])
        self._load(state)
        self.clocks.load_state_dict(state["clocks"])
        self._journal.rewind(state["logs"])
        set_random_states(state["random"][self.world.rank], self.device)
        self._resumed = True

    def _load(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._watch.restart()
        self.scheduler.load_state_dict(state["scheduler"])
        self._passes.load_state_dict(state["passes"])
        self.epoch, self.step = int(state["epoch"]), int(state["step"])
        self._meter.load_state_dict(state["meter"], self.device)
        self._ceiling.load_state_dict(state["ceiling"])
        self._best, self.outcome = state["best"], Outcome(**state["outcome"])
        since = state["since_row"]
        self._seconds_at_row, self._samples_since_row = float(since["seconds"]), int(since["samples"])
        if self._rate_log is not None:
            self._rate_log.discard()
            self._rate_log.updates = int(state["updates"])

    def _stop(self, number: int) -> None:
        self.clocks.pause_training()
        self._checkpoint(LAST, whatever=True)
        name, where = signal.Signals(number).name, self._journal.checkpoint_path(LAST)
        message = f"interrupted by {name} after step {self.step}; checkpoint written to {where}"
        # who asks with SIGUSR1 means to terminate
        raise Interrupted(message, number if number == signal.SIGINT else signal.SIGTERM)

    def _stop_if(self, received: int | None) -> None:
        """End the run here if a signal was received; one of several processes cannot, it waits for a step."""
        if received and self.world.size == 1:
            self._stop(received)

    def _stop_wanted(self, received: int | None) -> bool:
        """Whether a limit is reached; a signal that was received ends the run here.

        Several processes must stop at the same step, and agree on it at the logging period only: asking
        costs a wait for the device.
        """
        settings = self.settings
        if self.world.size > 1 and self.step % settings.log_every:
            return settings.max_steps is not None and self.step >= settings.max_steps
        if number := self.world.agree(received or 0, self.device):
            self._stop(number)
        return bool(self.world.agree(int(self._limit_reached()), self.device))

    def _limit_reached(self) -> bool:
        settings = self.settings
        late = settings.max_seconds is not None and self.clocks.training_seconds() >= settings.max_seconds
        return late or (settings.max_steps is not None and self.step >= settings.max_steps)

    def _rates(self) -> list[float]:
        rates: list[float] | None = getattr(self.optimizer, "rates", None)
        return rates if rates is not None else [float(group["lr"]) for group in self.optimizer.param_groups]
