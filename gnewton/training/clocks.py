"""Clocks: training, evaluation, logging and checkpoints are timed apart."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

NAMES = ("train", "evaluation", "logging", "checkpoint")


class Clocks:
    """Accumulated wall seconds by name. On CUDA a clock waits for the device at both of its ends, so that
    the work of one is never counted on another; nothing inside a training step waits.

    Args:
        device: the device whose queue is waited for.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.seconds = dict.fromkeys(NAMES, 0.0)
        self._training_since: float | None = None

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Count the enclosed block on clock ``name``; the training clock, if it runs, is held meanwhile."""
        training = self._training_since is not None
        self.pause_training()
        started = time.perf_counter()
        try:
            yield
        finally:
            self._wait()
            self.seconds[name] += time.perf_counter() - started
            if training:
                self.resume_training()

    def resume_training(self) -> None:
        """Start the training clock."""
        self._wait()
        self._training_since = time.perf_counter()

    def pause_training(self) -> None:
        """Stop the training clock and add what it counted."""
        if self._training_since is not None:
            self._wait()
            self.seconds["train"] += time.perf_counter() - self._training_since
            self._training_since = None

    def training_seconds(self) -> float:
        """The training clock now, without waiting for the device."""
        running = time.perf_counter() - self._training_since if self._training_since is not None else 0.0
        return self.seconds["train"] + running

    def state_dict(self) -> dict[str, float]:
        """The seconds of every clock."""
        return dict(self.seconds)

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Continue from earlier seconds."""
        self.seconds.update(state)

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        elif self._device.type == "mps":
            torch.mps.synchronize()
