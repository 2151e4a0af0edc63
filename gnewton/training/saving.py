"""Saving a run and continuing it: when a checkpoint is due, what it holds, and the way back."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from gnewton.training.checkpoint import random_states, restore_newest, set_random_states
from gnewton.training.resources import Clocks
from gnewton.training.runlog import RunLog
from gnewton.training.settings import EPOCHS, SECONDS, STEPS, Interval, TrainerSettings
from gnewton.training.state import TrainingState
from gnewton.training.world import World


class Saver:
    """Writes the checkpoints of a run, and continues from them.

    A checkpoint is due every so many epochs, steps or seconds, ``trainer.checkpoint_every``.

    Args:
        state, clocks, run_log: what a checkpoint records: the training, its times, the lengths of its logs.
        identity: what a checkpoint must agree on to be continued, such as the hash of the configuration.
        settings: of the training loop.
        world, device: the processes that share every batch, and where they meet.

    Attributes:
        resumed: whether the run continues from a checkpoint.
    """

    def __init__(
        self,
        state: TrainingState,
        clocks: Clocks,
        run_log: RunLog,
        *,
        identity: dict[str, str],
        settings: TrainerSettings,
        world: World,
        device: torch.device,
    ) -> None:
        self.resumed = False
        self._state, self._clocks, self._run_log = state, clocks, run_log
        self._identity = identity
        self._interval = Interval.parse(settings.checkpoint_every)
        self._log_every = settings.log_every
        self._world, self._device = world, device
        self._saved_at = 0.0  # wall clock of the last checkpoint

    def restart(self) -> None:
        """Count the seconds from now on."""
        self._saved_at = time.monotonic()

    def due(self, step: int) -> bool:
        """Whether one is due within an epoch, after ``step`` steps or the seconds since the last one.

        Several processes agree on seconds at the logging period.
        """
        if self._interval.unit == SECONDS:
            if not self._world.meets(step, self._log_every):
                return False
            due = self._interval.due_after(SECONDS, time.monotonic() - self._saved_at)
            return self._world.any(due, self._device)
        return self._interval.due_after(STEPS, step)

    def due_after(self, epochs: int) -> bool:
        """Whether one is due at the end of an epoch, the ``epochs``-th."""
        return self._interval.due_after(EPOCHS, epochs)

    def save(self, name: str, *, averaged: bool) -> None:
        """Write the checkpoint ``name``; ``averaged``: the model has the average of its weights now."""
        with self._clocks.measure("checkpoint"):
            weights = {"weights": "average" if averaged else "training"}
            self._run_log.checkpoint(name, self.state_dict() | weights)
        self.restart()

    def resume(self, folder: Path) -> bool:
        """Continue from the newest sound checkpoint of a run folder.

        Returns:
            False if there is no checkpoint yet, so that the run starts from its beginning.

        Raises:
            InputError: if there are checkpoints and none is sound.
        """
        return restore_newest(folder, self._identity, self.load_state_dict)

    def go_back(self, folder: Path | None) -> bool:
        """Return to the newest checkpoint of this run in every process; the clocks go on.

        Args:
            folder: the run folder; None in a process that writes nothing.

        Returns:
            False if there is no checkpoint.
        """
        seconds = self._clocks.state_dict()  # the time has been spent
        folder = self._world.gather(folder)[0]
        if folder is None or not self.resume(folder):
            return False
        self._world.barrier(self._device)  # every process reads before one of them writes
        self._clocks.load_state_dict(seconds)
        return True

    def state_dict(self) -> dict[str, Any]:
        """Everything a run needs to continue as if it had not stopped. Every process has to call it."""
        return {
            "identity": self._identity,
            **self._state.state_dict(),
            "clocks": self._clocks.state_dict(),
            "logs": self._run_log.lengths(),
            "random": self._world.gather(random_states(self._device)),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what :meth:`state_dict` returned; rows written after it are removed from the logs.

        Raises:
            InputError: if the logs have lost rows. Nothing has changed then.
        """
        self._run_log.check(state["logs"])
        self._state.load_state_dict(state)
        self._clocks.load_state_dict(state["clocks"])
        self._run_log.rewind(state["logs"])
        set_random_states(state["random"][self._world.rank], self._device)
        self.resumed = True
