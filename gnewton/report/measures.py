"""The measures of runs and set-ups: the cost of reaching a target, final metrics, medians and spreads."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from gnewton.errors import InputError
from gnewton.options import did_you_mean
from gnewton.report.runs import Run
from gnewton.report.setups import Setup
from gnewton.runfiles import BROKEN, ENDED, SCORES

MISSED = math.inf
"""Time, steps and epochs of a run that missed its target."""


@dataclass(frozen=True)
class MetricTarget:
    """A value of a metric to be reached: from below for an accuracy, from above for a loss."""

    metric: str
    value: float

    @classmethod
    def parse(cls, text: str) -> MetricTarget:
        """Parse ``metric=value``.

        Raises:
            InputError: if the metric is unknown or the value is not a finite number.
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
    def of(cls, setup: Setup) -> MetricTarget | None:
        """The target in the configuration of a set-up, if it has one."""
        value = setup.options.get("trainer.target.value")
        metric = setup.options.get("trainer.target.metric")
        return None if value is None or metric not in SCORES else cls(str(metric), float(value))

    def __str__(self) -> str:
        sign = "≥" if self.metric.endswith("accuracy") else "≤"
        return f"{self.metric.replace('_', ' ')} {sign} {self.value:g}"

    def reached(self, run: Run) -> dict[str, float]:
        """Training seconds, steps and epochs until the first row after step 0 that reaches the target.

        They are infinite (:data:`MISSED`) if none does, and NaN if the run did not measure the metric.
        """
        columns = ("train_seconds", "step", "epoch")
        metrics = run.trained
        measured = self.metric in metrics and bool(metrics[self.metric].notna().any())
        if not measured:
            value = math.nan if len(metrics) and run.status not in BROKEN else MISSED
            return dict.fromkeys(columns, value)
        values = metrics[self.metric]
        hits = metrics[values >= self.value if self.metric.endswith("accuracy") else values <= self.value]
        if hits.empty:
            return dict.fromkeys(columns, MISSED)
        return {column: float(hits.iloc[0][column]) for column in columns}


def worst_of(metric: str) -> float:
    """The value that stands for a run that diverged or failed."""
    return -math.inf if metric.endswith("accuracy") else math.inf


Array = npt.NDArray[np.float64]

SPREAD_FROM = 5
"""From this number of runs on, the spread is the interquartile range; below, it is the whole range."""

TO_TARGET = {"target_seconds": "train_seconds", "target_steps": "step", "target_epochs": "epoch"}
"""Measures of the cost of reaching the target, and the column of metrics.csv from which each is read."""

COSTS = ("seconds_per_step", "summary_share", "solve_share", "train_seconds", "peak_memory_mib")
"""Costs of a run: seconds per step, shares of the training time in summaries and solves, and so on."""

MEASURES = (*TO_TARGET, *SCORES, *COSTS, "epochs", "steps")
"""All measures of :func:`measure_run`."""


@dataclass(frozen=True)
class Spread:
    """Median and spread of a measure over the runs of a set-up.

    Attributes:
        median: of all values; a run that missed the target or broke down counts as ±infinity.
        low, high: the quartiles of :data:`SPREAD_FROM` values or more, else the extremes.
        count: number of values.
    """

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def over(cls, values: Iterable[float]) -> Spread:
        """Over the finite and infinite values; NaN means that nothing was measured."""
        known = sorted(value for value in map(float, values) if not math.isnan(value))
        if not known:
            return cls(math.nan, math.nan, math.nan, 0)
        median, low, high = map(float, median_and_spread(np.array(known)))
        return cls(median, low, high, len(known))


def median_and_spread(values: Array) -> tuple[Array, Array, Array]:
    """Median, low and high end over the first axis, as in :class:`Spread`.

    Quantiles are interpolated linearly between neighbours; a quantile next to an infinite value is infinite.
    """
    ordered = np.sort(values, axis=0)
    share = 0.25 if len(ordered) >= SPREAD_FROM else 0.0
    return _quantile(ordered, 0.5), _quantile(ordered, share), _quantile(ordered, 1 - share)


def _quantile(ordered: Array, share: float) -> Array:
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    weight = place - below
    if weight == 0:
        return np.asarray(ordered[below])
    with np.errstate(invalid="ignore"):  # ∞ − ∞ if both neighbours are infinite
        between = ordered[below] * (1 - weight) + ordered[below + 1] * weight
    return np.where(ordered[below] == ordered[below + 1], ordered[below], between)


def measure_run(run: Run, target: MetricTarget | None) -> dict[str, float]:
    """All measures of :data:`MEASURES`; NaN if there is no value.

    The final metrics of a diverged or failed run are the worst possible: a loss of infinity, an accuracy of
    minus infinity.
    """
    values = dict.fromkeys(MEASURES, math.nan)
    if target is not None:
        reached = target.reached(run)
        values |= {name: reached[column] for name, column in TO_TARGET.items()}
    if not run.trained.empty:
        last = run.trained.iloc[-1]
        values |= {
            "epochs": float(last["epoch"]),
            "steps": float(last["step"]),
            "train_seconds": float(last["train_seconds"]),
        }
        if "peak_memory_mib" in last:
            values["peak_memory_mib"] = float(run.metrics["peak_memory_mib"].max())
        values["seconds_per_step"] = float(last["train_seconds"]) / float(last["step"])
        values |= _shares(run, float(last["step"]), float(last["train_seconds"]))
        if run.status in ENDED:
            values |= {name: float(last[name]) for name in SCORES if name in last}
    if run.status in BROKEN:
        values |= {name: worst_of(name) for name in SCORES}
    return values


def _shares(run: Run, step: float, seconds: float) -> dict[str, float]:
    """Shares of the training time in summaries and solves, over the updates before ``step``."""
    if run.rates is None or seconds <= 0:
        return {}
    updates = run.rates.clocks[run.rates.clocks["step"] < step]
    return {
        share: float(updates[clock].sum()) / seconds
        for share, clock in (("summary_share", "summary_seconds"), ("solve_share", "solve_seconds"))
        if clock in updates
    }


def table_of_runs(setups: Iterable[Setup], targets: dict[str, MetricTarget | None]) -> pd.DataFrame:
    """One row per run: set-up, seed, status, folder and all measures.

    A metric that no run of a problem measured is missing in runs that broke down as well.

    Args:
        setups: the set-ups.
        targets: the target of each, by label.
    """
    setups = list(setups)
    unmeasured = {
        problem: [name for name in SCORES if not _measured(setups, problem, name)]
        for problem in {setup.problem for setup in setups}
    }
    return pd.DataFrame(
        [
            {
                "problem": setup.problem,
                "setup": setup.label,
                "optimizer": setup.optimizer,
                "target": "" if targets[setup.label] is None else str(targets[setup.label]),
                "seed": run.seed,
                "status": run.status,
                **measure_run(run, targets[setup.label]),
                **dict.fromkeys(unmeasured[setup.problem], math.nan),
                "folder": str(run.folder),
            }
            for setup in setups
            for run in setup.runs
        ]
    )


def _measured(setups: Sequence[Setup], problem: str, metric: str) -> bool:
    """Whether a run of a problem measured a metric; if none has any row, the losses count as measured."""
    runs = [run for setup in setups if setup.problem == problem for run in setup.runs if len(run.metrics)]
    return any(metric in run.metrics and run.metrics[metric].notna().any() for run in runs) or (
        not runs and metric.endswith("loss")
    )


def table_of_setups(
    setups: Iterable[Setup], runs: pd.DataFrame, targets: dict[str, MetricTarget | None]
) -> pd.DataFrame:
    """One row per set-up: counts, target, and a :class:`Spread` in the column of every measure."""
    rows = []
    for setup in setups:
        rows_of_setup = runs[runs["setup"] == setup.label]
        target = targets[setup.label]
        row: dict[str, object] = {
            "problem": setup.problem,
            "setup": setup.label,
            "solver": setup.solver,
            "optimizer": setup.optimizer,
            "runs": len(rows_of_setup),
            "ended": int(rows_of_setup["status"].isin(ENDED).sum()),
            "diverged": int((rows_of_setup["status"] == "diverged").sum()),
            "failed": int((rows_of_setup["status"] == "failed").sum()),
            "target": "" if target is None else str(target),
            "reached": int(rows_of_setup["target_seconds"].map(math.isfinite).sum()),
            "missed": int((rows_of_setup["target_seconds"] == math.inf).sum()),
        }
        row["unfinished"] = row["runs"] - row["ended"] - row["diverged"] - row["failed"]  # type: ignore[operator]
        rows.append(row | {name: Spread.over(rows_of_setup[name]) for name in MEASURES})
    return pd.DataFrame(rows)


def flat_table(table: pd.DataFrame) -> pd.DataFrame:
    """The table of set-ups with four columns per measure: median, low and high end, count."""
    flat = table[[name for name in table if name not in MEASURES]].copy()
    for name in MEASURES:
        for part in ("median", "low", "high", "count"):
            flat[f"{name}_{part}"] = [getattr(spread, part) for spread in table[name]]
    return flat
