"""Targets: when a run first reached a value of a metric."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gnewton.errors import InputError
from gnewton.options import did_you_mean
from gnewton.report.runs import Run
from gnewton.report.setups import Setup
from gnewton.runfiles import SCORES

MISSED = math.inf
"""Time, steps and epochs of a run that did not reach its target."""


@dataclass(frozen=True)
class Target:
    """A value of a metric: reached from below for an accuracy, from above for a loss."""

    metric: str
    value: float

    @classmethod
    def parse(cls, text: str) -> Target:
        """Read ``metric=value``.

        Raises:
            InputError: if the metric is unknown or the value no finite number.
        """
        metric, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--target {text}: must be metric=value, such as validation_accuracy=0.95")
        if metric not in SCORES:
            hint = did_you_mean(metric, SCORES)
            raise InputError(f"--target {text}: the metric must be one of {', '.join(SCORES)}{hint}")
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise InputError(f"--target {text}: the value must be a finite number")
        return cls(metric, number)

    @classmethod
    def of(cls, setup: Setup) -> Target | None:
        """The target in the configuration of a set-up."""
        value = setup.options.get("trainer.target.value")
        metric = setup.options.get("trainer.target.metric")
        return None if value is None or metric not in SCORES else cls(str(metric), float(value))

    def __str__(self) -> str:
        sign = "≥" if self.metric.endswith("accuracy") else "≤"
        return f"{self.metric.replace('_', ' ')} {sign} {self.value:g}"

    def reached(self, run: Run) -> dict[str, float]:
        """Training seconds, steps and epochs up to the first row that reaches the target.

        Infinite (:data:`MISSED`) where none does; NaN where the metric was not measured in the run at all.
        """
        columns = ("train_seconds", "step", "epoch")
        metrics = run.metrics
        measured = self.metric in metrics and bool(metrics[self.metric].notna().any())
        if not measured:
            value = math.nan if len(metrics) and run.status not in ("diverged", "failed") else MISSED
            return dict.fromkeys(columns, value)
        values = metrics[self.metric]
        hits = metrics[values >= self.value if self.metric.endswith("accuracy") else values <= self.value]
        if hits.empty:
            return dict.fromkeys(columns, MISSED)
        return {column: float(hits.iloc[0][column]) for column in columns}
