"""How a run ended, and whether it reached its target."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from gnewton.errors import Diverged
from gnewton.runfiles import DONE, SCORES
from gnewton.training.settings import Target


@dataclass
class Outcome:
    """How a run ended.

    Attributes:
        status: "done", "target" (the target was reached), "limit" (of steps or seconds).
        epoch, step: how far it came; the epoch is a fraction where a limit cut it short.
        skipped, rollbacks: what was done about numbers that were not finite, see ``trainer.on_nonfinite``.
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


def reached(target: Target, row: dict[str, Any]) -> dict[str, Any] | None:
    """What to report if a row of metrics.csv reaches the target (an accuracy from below), else None."""
    value = row[target.metric]
    if target.value is None or value is None:
        return None
    if value < target.value if target.metric.endswith("accuracy") else not value <= target.value:
        return None
    found = {"metric": target.metric, "value": target.value, "reached": value}
    return found | {key: row[key] for key in ("epoch", "step", "train_seconds")}


def require_finite(row: dict[str, Any]) -> None:
    """Refuse a row of metrics.csv with a loss that is not finite.

    Raises:
        Diverged: naming the loss and the step.
    """
    for name in SCORES:
        value = row[name]
        if value is not None and not math.isfinite(value):
            raise Diverged(f"the {name.replace('_', ' ')} is {value} after step {row['step']}")
