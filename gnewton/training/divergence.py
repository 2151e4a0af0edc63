"""Divergence with finite losses: a training loss far above that at the start."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from statistics import median
from typing import Any

import torch

SAMPLES = 1000
"""Training samples, at most, on which the loss at the start is measured."""

FEWEST = 10
"""Fewest steps a verdict rests on, if the run has made as many."""


class LossCeiling:
    """Judges training losses that have already been read; it never waits for the device.

    With f₀ the mean loss at the start and f₋ the lowest loss of a step so far, the ceiling is

        f₀ + (factor − 1) · max(|f₀|, f₀ − f₋)

    which is factor · f₀ for losses >= 0. The second scale serves losses that change sign, which may start
    near zero by chance. Medians are compared with it, so that a few steps with huge losses decide nothing.

    Args:
        factor: of the rule; None: no loss is ever far above the start.
        epoch: steps in an epoch. A verdict within a run rests on as many, and on :data:`FEWEST` at least.

    Attributes:
        start: the loss at the start; None before it is measured.
    """

    def __init__(self, factor: float | None, epoch: int) -> None:
        self.factor = factor
        self._window = max(epoch, FEWEST)
        self._tail = max(math.ceil(epoch / 10), FEWEST)
        self.start: float | None = None
        self._lowest = math.inf
        self._recent: deque[float] = deque(maxlen=self._window)

    @property
    def lacks_start(self) -> bool:
        """Whether the loss at the start is still to be measured."""
        return self.factor is not None and self.start is None

    def record(self, losses: Iterable[float]) -> None:
        """Record the losses of the next steps."""
        for loss in losses:
            self._lowest = min(self._lowest, loss)
            self._recent.append(loss)

    def ceiling(self) -> float:
        """The loss above which a run has diverged; infinite if the start gives no scale."""
        if self.factor is None or self.start is None or not math.isfinite(self.start) or not self._recent:
            return math.inf
        scale = max(abs(self.start), self.start - self._lowest)
        return self.start + (self.factor - 1) * scale if scale > 0 else math.inf

    def is_exceeded_by_the_latest(self) -> bool:
        """Whether the last three losses are far above the start, perhaps only a spike."""
        return bool(self._recent) and median(self._last(3)) > self.ceiling()

    def is_exceeded(self) -> bool:
        """Whether the loss over the last tenth of an epoch is far above the start."""
        return bool(self._recent) and median(self._last(self._tail)) > self.ceiling()

    def is_exceeded_for_long(self) -> bool:
        """Whether it is, and so is the loss over the steps of a whole epoch."""
        full = len(self._recent) == self._window
        return full and self.is_exceeded() and median(self._recent) > self.ceiling()

    def describe(self, step: int, *, ended: bool) -> str:
        """The verdict after ``step`` steps in words; ``ended``: the one at the end of the run."""
        losses = self._last(self._tail if ended else self._window)
        return (
            f"the training loss has diverged: median {median(losses):.4g} over the last {len(losses)} steps "
            f"before step {step}, above the ceiling of {self.ceiling():.4g} "
            f"(trainer.divergence={self.factor:g}, loss at the start {self.start:.4g})"
        )

    def state_dict(self) -> dict[str, Any]:
        """The losses on which the verdicts of a resumed run rest."""
        return {
            "start": self.start,
            "lowest": self._lowest,
            "recent": torch.tensor(list(self._recent), dtype=torch.float64),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what :meth:`state_dict` returned."""
        self.start, self._lowest = state["start"], float(state["lowest"])
        self._recent = deque(state["recent"].tolist(), maxlen=self._window)

    def _last(self, count: int) -> list[float]:
        return list(self._recent)[-count:]
