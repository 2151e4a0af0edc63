"""What a run uses: wall time by kind of work, throughput, and memory."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from gnewton.backend import is_exhausted
from gnewton.errors import OutOfMemory
from gnewton.runfiles import CLOCKS

NAMES = tuple(name.removesuffix("_seconds") for name in CLOCKS)
"""Training, evaluation, logging and checkpoints are timed apart."""


class Clocks:
    """Accumulated wall seconds by name. On an accelerator a clock waits for the device at both of its ends,
    so that the work of one is never counted on another; nothing inside a training step waits.

    Args:
        device: the device to wait for.

    Attributes:
        seconds: what each clock has counted.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.seconds = dict.fromkeys(NAMES, 0.0)
        self._training_since: float | None = None

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Count the enclosed block on clock ``name``; the training clock, if it runs, is paused."""
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
        """Stop the training clock, if it runs, and add what it counted."""
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


class Throughput:
    """Training samples per second since the last row of metrics.csv."""

    def __init__(self) -> None:
        self._samples = 0
        self._seconds_before = 0.0

    def add(self, samples: int) -> None:
        """Count the samples of a training step."""
        self._samples += samples

    def take(self, train_seconds: float) -> float | None:
        """Samples per second up to ``train_seconds`` of training, and count anew; None for no time at all."""
        spent = train_seconds - self._seconds_before
        rate = round(self._samples / spent, 3) if spent > 0 else None
        self._seconds_before, self._samples = train_seconds, 0
        return rate

    def state_dict(self) -> dict[str, Any]:
        """The counts since the last row."""
        return {"seconds": self._seconds_before, "samples": self._samples}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what :meth:`state_dict` returned."""
        self._seconds_before, self._samples = float(state["seconds"]), int(state["samples"])


def reset_peak_memory(device: torch.device) -> None:
    """Start a new maximum, where that is possible (on CUDA)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_mib(device: torch.device) -> float:
    """Largest memory so far, in MiB: of the device's allocator on CUDA, of the whole process elsewhere."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB, on macOS bytes
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)


@contextmanager
def memory_suffices(device: torch.device, work: str, options: str) -> Iterator[None]:
    """Within the block, running out of memory is an error that says what to lower.

    Args:
        device: the device whose memory is short.
        work: what the block does, for the message.
        options: the options to lower, with their values.

    Raises:
        OutOfMemory: in place of torch's error.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_exhausted(error):
            raise
        raise OutOfMemory(f"out of memory on {device} in {work}; lower {options}") from error
