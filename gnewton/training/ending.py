"""How a run ends: the signals and limits that stop it, its target, and the record of its end."""

from __future__ import annotations

import logging
import signal
import threading
from dataclasses import dataclass, field
from types import FrameType, TracebackType
from typing import Any

import torch

from gnewton.runfiles import DONE, LIMIT, STOPPED, TARGET
from gnewton.training.resources import Clocks
from gnewton.training.settings import EarlyStop, Target, TrainerSettings
from gnewton.training.world import World

log = logging.getLogger("gnewton")

_STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))


class StopSignals:
    """Within the block, SIGINT, SIGTERM and SIGUSR1 are noted in :attr:`received` instead of acting.

    A second SIGINT acts at once, for a user who does not want to wait. Outside the main thread, where Python
    allows no handlers, the block changes nothing.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in _STOPPING}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number


class StopRule:
    """Stops a run before its last epoch: at a limit of steps or seconds, or by a signal.

    Args:
        settings: with the limits.
        clocks: of the run.
        world, device: the processes that share every batch, and where they meet.

    Attributes:
        signals: those received, within their block.
    """

    def __init__(self, settings: TrainerSettings, clocks: Clocks, world: World, device: torch.device) -> None:
        self.signals = StopSignals()
        self._settings, self._clocks = settings, clocks
        self._world, self._device = world, device

    def limit_reached(self, step: int) -> bool:
        """Whether this process has reached a limit after ``step`` steps."""
        most = self._settings.max_seconds
        late = most is not None and self._clocks.training_seconds() >= most
        return late or self._last(step)

    def status_at_start(self, row: dict[str, Any], step: int, patience: Patience) -> str:
        """The status with which a resumed run has already ended under its present limits; else ``DONE``.

        Args:
            row: the last row of metrics.csv.
            step: steps made so far.
            patience: of the early stop.
        """
        if step == 0 or not row or row["step"] != step:
            return DONE
        if target_report(self._settings.target, row):
            return TARGET
        if patience.is_over(self._settings.early_stop):
            return STOPPED
        return LIMIT if self.limit_reached(step) else DONE

    def signal(self) -> int:
        """The signal that ends the run at once, 0 for none; one of several processes waits for a step."""
        return (self.signals.received or 0) if self._world.size == 1 else 0

    def agreed_signal(self, step: int) -> int:
        """The signal that ends the run after ``step`` steps, 0 for none.

        Several processes must stop at the same step. They agree on it at the logging period only, since to
        agree is to wait for the device.
        """
        return 0 if self._apart(step) else self._world.agree(self.signals.received or 0, self._device)

    def agreed_limit(self, step: int) -> bool:
        """Whether all processes stop after ``step`` steps, since any of them has reached a limit."""
        if self._apart(step):
            return self._last(step)
        return self._world.any(self.limit_reached(step), self._device)

    def _apart(self, step: int) -> bool:
        """Whether several processes go on without asking each other."""
        return not self._world.meets(step, self._settings.log_every)

    def _last(self, step: int) -> bool:
        return self._settings.max_steps is not None and step >= self._settings.max_steps


@dataclass
class Outcome:
    """How a run ended.

    Attributes:
        status: "done", "target" (the target was reached), "limit" (of steps or seconds), "stopped" (early).
        epoch, step: how far it came; the epoch is a fraction if a limit cut it short.
        skipped, rollbacks: steps left out and rollbacks, see ``trainer.on_nonfinite``.
        metrics: the last row of metrics.csv.
        target: metric, value, step, epoch and training seconds at which the target was reached, or None.
    """

    status: str = DONE
    epoch: float = 0.0
    step: int = 0
    skipped: int = 0
    rollbacks: int = 0
    metrics: dict[str, Any] = field(default_factory=dict)
    target: dict[str, Any] | None = None


def target_report(target: Target, row: dict[str, Any]) -> dict[str, Any] | None:
    """The report on a row of metrics.csv that reaches the target; None if it does not.

    A loss reaches its target from above, an accuracy from below.
    """
    value = row[target.metric]
    if target.value is None or value is None:
        return None
    if value < target.value if target.metric.endswith("accuracy") else not value <= target.value:
        return None
    report = {"metric": target.metric, "value": target.value, "reached": value}
    return report | {key: row[key] for key in ("epoch", "step", "train_seconds")}


class Patience:
    """Counts the evaluations since the best value of a metric.

    Attributes:
        best: the best value so far; None before the first.
        since: evaluations since then.
        count: evaluations so far.
    """

    def __init__(self) -> None:
        self.best: float | None = None
        self.since = 0
        self.count = 0

    def record(self, settings: EarlyStop, row: dict[str, Any]) -> None:
        """Take up a row of metrics.csv. A loss gets better downwards, an accuracy upwards."""
        self.count += 1
        value = row[settings.metric]
        if value is None:
            return
        sign = settings.sign
        if self.best is None or sign * value < sign * self.best:
            self.best, self.since = value, 0
        else:
            self.since += 1

    def is_over(self, settings: EarlyStop) -> bool:
        """Whether the metric has got no better for too long, or lags behind."""
        return (settings.patience is not None and self.since >= settings.patience) or self.lags(settings)

    def lags(self, settings: EarlyStop) -> bool:
        """Whether the best value so far is worse than the bound at the latest evaluation."""
        if self.best is None or not 0 < self.count <= len(settings.bounds):
            return False
        return settings.sign * self.best > settings.sign * settings.bounds[self.count - 1]

    def state_dict(self) -> dict[str, Any]:
        """The best value, the evaluations since, and their number."""
        return {"best": self.best, "since": self.since, "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what :meth:`state_dict` returned."""
        self.best, self.since, self.count = state["best"], int(state["since"]), int(state["count"])


def judge(outcome: Outcome, patience: Patience, settings: TrainerSettings, *, last: bool) -> bool:
    """Compare the latest row of metrics.csv with the target and, unless it is the last, with the early stop.

    Returns:
        Whether the run has ended; ``outcome`` says how.
    """
    outcome.target = target_report(settings.target, outcome.metrics)
    if outcome.target is not None:
        outcome.status, last = TARGET, True
        message = "target reached: %s %.6g after %.3f s of training"
        log.info(message, *(outcome.target[key] for key in ("metric", "reached", "train_seconds")))
    patience.record(settings.early_stop, outcome.metrics)
    if not last and patience.is_over(settings.early_stop):
        outcome.status, last = STOPPED, True
        lags = f" after {outcome.metrics['epoch']:g} epochs" if patience.lags(settings.early_stop) else ""
        log.info("stopped early: %s no better than %.6g%s", settings.early_stop.metric, patience.best, lags)
    return last
