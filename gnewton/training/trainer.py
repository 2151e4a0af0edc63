"""The training loop, one for every optimizer."""

from __future__ import annotations

import logging
import math
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gnewton.data import Batch, DataSet
from gnewton.errors import Diverged, Interrupted
from gnewton.loggers import Logger
from gnewton.optim.options import OptimizerRecipe
from gnewton.runfiles import BEST, DONE, LAST, LIMIT
from gnewton.training.ending import Outcome, StopRule, judge
from gnewton.training.evaluate import Evaluator, Score, WeightAverage
from gnewton.training.faults import (
    RECOVERIES,
    SAMPLES,
    Action,
    LossCeiling,
    StepFault,
    check_scores,
    lower_rates,
)
from gnewton.training.resources import Clocks, memory_suffices, reset_peak_memory
from gnewton.training.runlog import ProgressBar, RateLog, RunLog, learning_rates, summary_line
from gnewton.training.saving import Saver
from gnewton.training.settings import TrainerSettings
from gnewton.training.state import TrainingState
from gnewton.training.training_step import Precision, TrainingStep
from gnewton.training.world import World

log = logging.getLogger("gnewton")


class Trainer:
    """Trains a model with an optimizer on a data set; writes metrics.csv, steps.csv, rates.csv, checkpoints.

    Args:
        model, data, optimizer: built and on their device.
        recipe: the options the optimizer was built from; it knows how a step of it is made.
        settings: the options of the loop.
        folder: the run folder; None: this process writes nothing.
        rate_log: collects updates of the rates until they are written; None for optimizers without rates.
        identity: what a checkpoint must agree on to be continued, such as the hash of the configuration.
        world: the processes that share every batch; this one alone by default.
        logger: receives the rows of the CSV files as well.

    Attributes:
        state: everything that training changes.
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
        self.world = world if world is not None else World()
        self.folder = folder
        self.clocks = Clocks(self.device)
        self.batch_size = None if recipe.full_batch else settings.batch_size
        self.steps_per_epoch = data.train.steps(self.batch_size)
        self.scheduler = recipe.schedule.build(optimizer, settings.epochs * self.steps_per_epoch)
        precision = Precision(settings.precision, self.device)
        average = WeightAverage(model, settings.ema) if settings.ema is not None else None
        self.state = TrainingState(
            *(model, optimizer, self.scheduler),
            precision=precision,
            ceiling=LossCeiling(settings.divergence, self.steps_per_epoch),
            rate_log=rate_log,
            steps_per_epoch=self.steps_per_epoch,
            average=average,
        )
        self._evaluator = Evaluator(
            *(model, data, optimizer, recipe), settings.evaluation, average, self.world
        )
        self.state.meter.answers = data.task.answers
        self._training_step = TrainingStep(
            *(model, data.task, optimizer, recipe, self.world),
            microbatch=settings.microbatch,
            precision=precision,
            compiled=settings.compile,
            clip_norm=settings.clip_norm,
        )
        self._run_log = RunLog(folder, rate_log, logger)
        self._rate_log = rate_log
        self._recovery = RECOVERIES[settings.on_nonfinite](settings)
        self._sound_state: dict[str, Any] = {}  # of the last read, if the policy may return to it
        self._isolate_before = 0  # steps before this one are made alone, each checked
        place: dict[str, Any] = {"world": self.world, "device": self.device}
        self._stops = StopRule(settings, self.clocks, **place)
        self._saver = Saver(
            *(self.state, self.clocks, self._run_log), identity=identity, settings=settings, **place
        )

    def fit(self) -> Outcome:
        """Train until the epochs are over, or a limit or the target is reached.

        Returns:
            how the run ended.

        Raises:
            Diverged: at a number that is not finite, or a loss far above that of the start, if
                ``trainer.on_nonfinite`` does not help; checkpoint/last.pt is from before it.
            Interrupted: by a signal, after the step in hand and a checkpoint.
        """
        reset_peak_memory(self.device)
        total = self.settings.epochs * self.steps_per_epoch
        total = min(total, self.settings.max_steps or total)
        with ExitStack() as stack:
            stack.enter_context(self._run_log)
            stack.enter_context(self._stops.signals)
            progress = stack.enter_context(ProgressBar(self.settings.progress, total, self.state.step))
            if self.state.ceiling.lacks_start:
                with self.clocks.measure("evaluation"):
                    self.state.ceiling.start = self._evaluator.start_loss(SAMPLES, self._stop_on_signal)
            if not self.state.outcome.metrics:
                self._evaluate()  # the target, an early stop and best.pt begin with the next row
            if not self._saver.resumed:
                self._checkpoint(LAST)
            self._saver.restart()
            row = self.state.outcome.metrics
            self.state.outcome.status = self._stops.status_at_start(row, self.state.step, self.state.patience)
            try:
                while self.state.epoch < self.settings.epochs and self.state.outcome.status == DONE:
                    try:
                        self.state.outcome.status = self._train_epoch(progress)
                        self._finish_epoch()
                    except Diverged as fault:  # noqa: PERF203
                        self.clocks.pause_training()
                        self._recover(fault)
                        self.state.outcome.status = DONE
            finally:
                self.clocks.pause_training()
                self._run_log.rates()
        return self.state.outcome

    def resume(self, folder: Path) -> bool:
        """Continue from a checkpoint in a run folder, see :meth:`~gnewton.training.saving.Saver.resume`."""
        return self._saver.resume(folder)

    def _train_epoch(self, progress: ProgressBar) -> str:
        """Make the remaining steps of an epoch; returns ``DONE``, or ``LIMIT`` if one was reached."""
        status = DONE
        skip = self.state.step - self.state.epoch * self.steps_per_epoch
        self.model.train()
        if skip == 0:
            self.state.meter.reset()
        batches: Iterator[Batch] = self.data.train.epoch(self.state.epoch, self.batch_size, skip=skip)
        if self._saver.resumed and self._stops.limit_reached(self.state.step):
            batches, status = iter(()), LIMIT  # interrupted while it evaluated at the limit
        self._keep_sound_state()
        self.clocks.resume_training()
        for batch in batches:
            if self.state.step < self._isolate_before:
                self._make_step_alone(batch)
            else:
                self._make_step(batch)
            progress.advance()
            if self.state.step % self.settings.log_every == 0:
                self._report(progress)
            if self._stop_due():
                status = LIMIT
                break
            if self._saver.due(self.state.step):
                self._checkpoint(LAST)
        self._report(progress)
        self.clocks.pause_training()
        ended = status == LIMIT or self.state.epoch + 1 == self.settings.epochs
        self.state.ceiling.check(self.state.step, ended=ended, anywhere=self._anywhere)
        return status

    def _make_step(self, batch: Batch) -> None:
        """Make one training step; nothing in it waits for the device."""
        self._advance_schedule()
        with memory_suffices(self.device, f"training step {self.state.step}", self.settings.sizes()):
            result = self._training_step(batch)
        self.state.count(result)

    def _make_step_alone(self, batch: Batch) -> None:
        """Make one training step and check it at once; a fault undoes it, and the policy may leave it out."""
        before = self.state.snapshot()
        try:
            self._make_step(batch)
            self.read(isolated=True)
        except StepFault as fault:
            self.state.restore(before)
            self._recover(fault, isolated=True)
            self._advance_schedule()
            self.state.step += 1

    def _advance_schedule(self) -> None:
        """Move a schedule by steps on to the next step; it begins at that of step 0."""
        if self.recipe.schedule.by_step and self.state.step > 0:
            self.recipe.schedule.advance(self.scheduler, math.nan)

    def _recover(self, fault: Diverged, *, isolated: bool = False) -> None:
        """Ask the policy what follows a fault, and do it.

        Raises:
            Diverged: if the policy cannot help.
        """
        rollbacks = self.state.outcome.rollbacks
        action = self._recovery.decide(fault, rollbacks=rollbacks, isolated=isolated)
        if action is Action.SKIP:
            self.state.outcome.skipped += 1
            lost = "update of the rates" if isinstance(fault, StepFault) and fault.harmless else "step"
            log.warning("%s: this %s is skipped (%d so far)", fault, lost, self.state.outcome.skipped)
        elif action is Action.REWIND:
            self._isolate_before = self.state.step
            self.state.restore(self._sound_state)
            log.warning("%s: going back to step %d to find the step and skip it", fault, self.state.step)
        else:
            self._roll_back(fault)

    def _roll_back(self, fault: Diverged) -> None:
        """Load the last checkpoint and lower the rates."""
        rollbacks = self.state.outcome.rollbacks + 1
        if not self._saver.go_back(self.folder):
            raise fault
        # the rates in the checkpoint have been lowered as often as its own count says
        factor = self.settings.rollback_factor ** (rollbacks - self.state.outcome.rollbacks)
        self.state.outcome.rollbacks = rollbacks
        lower_rates(self.optimizer, self.scheduler, factor)
        log.warning("%s: rolled back to step %d, learning rates × %g", fault, self.state.step, factor)

    def _report(self, progress: ProgressBar) -> None:
        """Read the losses, write the rates and show the progress."""
        self.read()
        with self.clocks.measure("logging"):
            progress.show(self.state.meter.latest, learning_rates(self.optimizer))

    def read(self, *, isolated: bool = False) -> None:
        """Read the losses and check that all is finite: the only place where training waits for the device.

        Args:
            isolated: whether one step, made alone, is to be checked.

        Raises:
            StepFault: if something is not finite and the policy does not tolerate it.
        """
        fault = self.state.watch.fault(self.state.step)
        try:
            losses = self.state.meter.read()
            self.state.ceiling.record(losses)
            self.state.step_log.add(losses)
        except StepFault as named:  # says more: it names the step
            fault = named
        if self._anywhere(fault is not None):  # buffers differ between processes
            fault = fault or StepFault(
                f"another process met what is not finite before step {self.state.step}"
            )
            if not self._recovery.tolerates(fault):
                raise fault
            self._recover(fault)
        elif isolated or (self._rate_log is not None and not self._rate_log.empty):
            self._recovery.passed()
        with self.clocks.measure("logging"):
            self._run_log.rates()
            if self.state.step % self.settings.log_every == 0:
                self._run_log.steps(self.state.steps_row(self.clocks))
        self._keep_sound_state()

    def _anywhere(self, wanted: bool) -> bool:
        """Whether ``wanted`` holds in any process."""
        return self.world.any(wanted, self.device)

    def _keep_sound_state(self) -> None:
        """Keep a copy of the state, all of which is finite and written, if the policy may return to it."""
        if self._recovery.keeps_state:
            self._sound_state = self.state.snapshot()

    def _finish_epoch(self) -> None:
        """Evaluate, log and checkpoint after an epoch, or after the part of one before a limit."""
        settings, state, outcome = self.settings, self.state, self.state.outcome
        whole = state.step == (state.epoch + 1) * self.steps_per_epoch
        epochs = state.epoch + whole
        last = epochs >= settings.epochs or outcome.status != DONE
        outcome.epoch, outcome.step = state.epochs, state.step
        scores = None
        if last or epochs % settings.evaluation.every == 0:
            scores = self._evaluate()
            check_scores(outcome.metrics)
        if whole:  # only now: if interrupted before, a resumed run evaluates this epoch again
            if not self.recipe.schedule.by_step:
                self.recipe.schedule.advance(self.scheduler, state.meter.loss)
            state.epoch = epochs
        if scores is not None:
            self._keep_best(scores["validation"])
            last = judge(outcome, state.patience, settings, last=last)
        if last or (whole and self._saver.due_after(epochs)):
            self._checkpoint(LAST, even_above_ceiling=last)

    def _evaluate(self) -> dict[str, Score]:
        """Evaluate the model and write a row of metrics.csv."""
        with self.clocks.measure("evaluation"):
            scores = self._evaluator.scores(self._stop_on_signal)
        with self.clocks.measure("logging"):
            self.state.outcome.metrics = row = self.state.row(scores, self.clocks)
            self._run_log.metrics(row)
            log.info(summary_line(row))
        return scores

    def _keep_best(self, score: Score) -> None:
        if not self._anywhere(self.state.ceiling.is_exceeded()) and self.state.improves(score):
            with self._evaluator.in_force():
                self._checkpoint(BEST)
            self._keep_sound_state()  # of the parameters of training

    def _checkpoint(self, name: str, *, even_above_ceiling: bool = False) -> None:
        """Write a checkpoint, unless the one before it is worth more.

        It is if something is not finite, or if the loss is far above that of the start. The latter does not
        count with ``even_above_ceiling``. So a run that ends as diverged leaves a state from before that.
        """
        self.read()
        if not even_above_ceiling and self._anywhere(self.state.ceiling.is_exceeded_by_the_latest()):
            return
        self._saver.save(name, averaged=name == BEST and self._evaluator.elsewhere)

    def _stop(self, number: int) -> None:
        """Write a checkpoint and end the run by signal ``number``; 0: none, and it goes on."""
        if not number:
            return
        self.clocks.pause_training()
        self._checkpoint(LAST, even_above_ceiling=True)
        name, path = signal.Signals(number).name, self._run_log.checkpoint_path(LAST)
        message = f"interrupted by {name} after step {self.state.step}; checkpoint written to {path}"
        raise Interrupted(message, number)

    def _stop_on_signal(self) -> None:
        """End the run here if a signal says so."""
        self._stop(self._stops.signal())

    def _stop_due(self) -> bool:
        """Whether a limit is reached; a signal ends the run here."""
        self._stop(self._stops.agreed_signal(self.state.step))
        return self._stops.agreed_limit(self.state.step)
