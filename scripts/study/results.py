"""What a study found: the setting chosen for each tuned method, and every method's result on every task."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import pandas as pd

from gnewton.report.measures import measure_run
from scripts.study.plan import Plan
from scripts.study.stages import Outcome

WINDOW = 0.1
"""Share of a run over whose steps the training loss is averaged before it is compared with a target."""


def final_loss(outcome: Outcome) -> float:
    """The loss over the training set at the end; infinite for a run that diverged or failed."""
    if outcome.lost or outcome.run is None:
        return math.inf
    value = measure_run(outcome.run, None)["train_loss"]
    return value if math.isfinite(value) else math.inf


def choose(outcomes: Iterable[Outcome]) -> dict[tuple[str, str], str]:
    """The setting of least final training loss, by (task, method)."""
    best: dict[tuple[str, str], Outcome] = {}
    for outcome in outcomes:
        key = (outcome.trial.task, outcome.trial.method)
        if key not in best or final_loss(outcome) < final_loss(best[key]):
            best[key] = outcome
    return {key: outcome.trial.setting for key, outcome in best.items()}


def trailing_loss(outcome: Outcome) -> pd.Series:
    """The mean training loss over the last :data:`WINDOW` of the run's steps, by step."""
    if outcome.run is None or outcome.run.steps.empty:
        return pd.Series(dtype=float)
    losses = outcome.run.steps.set_index("step")["loss"]
    return losses.rolling(max(1, round(WINDOW * len(losses)))).mean().dropna()


def share_to(outcome: Outcome, target: float, length: int) -> float:
    """The share of a run of ``length`` steps after which the trailing loss is at most ``target``.

    Infinite if it never is.
    """
    reached = trailing_loss(outcome)
    reached = reached[reached <= target]
    return math.inf if reached.empty else float(reached.index[0]) / length


def table(plan: Plan, chosen: dict[tuple[str, str], str], finals: Sequence[Outcome]) -> pd.DataFrame:
    """One row per task and method.

    Columns: the chosen setting; n runs and how many were lost; median, least and greatest final training
    loss; its median relative to that of the reference; the median share of the run after which the loss of
    the reference was reached; median test accuracy and training seconds.
    """
    rows = []
    for task in plan.tasks:
        of_task = [outcome for outcome in finals if outcome.trial.task == task]
        reference = [outcome for outcome in of_task if outcome.trial.method == plan.reference]
        target = _median(trailing.iloc[-1] for o in reference if len(trailing := trailing_loss(o)))
        length = max((int(o.run.steps["step"].iloc[-1]) for o in of_task if not o.lost and o.run), default=1)
        base = _median(map(final_loss, reference))
        for method in plan.methods:
            outcomes = [outcome for outcome in of_task if outcome.trial.method == method.name]
            losses = [final_loss(outcome) for outcome in outcomes]
            rows.append(
                {
                    "task": task,
                    "method": method.name,
                    "setting": chosen.get((task, method.name), "as by default"),
                    "n": len(outcomes),
                    "lost": sum(outcome.lost for outcome in outcomes),
                    "train_loss": _median(losses),
                    "least": min(losses, default=math.nan),
                    "greatest": max(losses, default=math.nan),
                    "ratio": _median(losses) / base if base > 0 else math.nan,
                    "share_to_reference": _median(share_to(outcome, target, length) for outcome in outcomes),
                    "test_accuracy": at_end(outcomes, "test_accuracy").median(),
                    "train_seconds": at_end(outcomes, "train_seconds").median(),
                }
            )
    return pd.DataFrame(rows)


def ratios(results: pd.DataFrame, other: str, method: str) -> pd.Series:
    """The final training loss of ``method`` over that of ``other`` by task."""
    losses = results.pivot(index="task", columns="method", values="train_loss")
    return losses[method] / losses[other]


def geometric_mean(values: Iterable[float]) -> float:
    """The geometric mean; infinite if one of the values is, unless another is 0; NaN without any."""
    logarithms = [math.log(value) if value > 0 else -math.inf for value in values if not math.isnan(value)]
    return math.exp(sum(logarithms) / len(logarithms)) if logarithms else math.nan


def at_end(outcomes: Iterable[Outcome], column: str) -> pd.Series:
    """The last values of a column of metrics.csv, of those runs that came to an end and have it."""
    ends = (o.run.metrics for o in outcomes if not o.lost and o.run is not None)
    return pd.Series([metrics[column].iloc[-1] for metrics in ends if column in metrics], dtype=float)


def _median(values: Iterable[float]) -> float:
    series = pd.Series(list(values), dtype=float)
    return float(series.median()) if len(series) else math.nan
