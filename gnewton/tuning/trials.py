"""Trials and reruns: the bounds at which they end early, their scores and their CSV files."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd

from gnewton.errors import InputError
from gnewton.experiment.folder import write_text
from gnewton.options import show
from gnewton.report.runs import Run, read_run, require_end
from gnewton.runfiles import DIVERGED, DONE, ENDED, STOPPED, VALIDATION_SCORES
from gnewton.sweep.manifest import Job, Manifest
from gnewton.tuning.space import BUDGET

PRUNED = "pruned"
"""Status of a trial that ended at a bound of its early stop."""

_SHOWN = ("train_loss", "validation_loss", "validation_accuracy", "step", "epoch", "train_seconds")
"""Columns of the last row of metrics.csv that trials.csv repeats; none is of the test split."""

_ALL = ("test_loss", "test_accuracy", "train_accuracy")
"""Further columns of winners.csv."""


@dataclass(frozen=True)
class Trial:
    """One run of an optimizer at one point of its search space.

    Attributes:
        optimizer: its name.
        number: from 1.
        point: the sampled settings.
        job: the run.
        seed: of the run.
        budget: values of the options in :data:`BUDGET`.
    """

    optimizer: str
    number: int
    point: Mapping[str, Any]
    job: Job
    seed: int
    budget: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TrialResult:
    """A trial that came to its end, was pruned or diverged.

    Attributes:
        trial: the trial.
        run: its run folder, as read.
        status: "done", "pruned" or "diverged".
        score: lower is better; infinite unless the trial is done.
        course: its evaluations.
    """

    trial: Trial
    run: Run
    status: str
    score: float
    course: Course = field(default_factory=lambda: Course((), whole=False))

    @property
    def last(self) -> dict[str, Any]:
        """The last row of metrics.csv; empty if there is none or the run diverged."""
        if self.status == DIVERGED or self.run.metrics.empty:
            return {}
        return dict(self.run.metrics.iloc[-1])


def read_results(trials: Iterable[Trial], manifest: Manifest, metric: str, sign: int) -> list[TrialResult]:
    """Read the runs of trials, each of which is done, pruned or diverged.

    Args:
        trials: the trials; two with equal settings share a run.
        manifest: of their sweep.
        metric: the column of metrics.csv that is compared.
        sign: factor on the metric that makes lower values better.

    Raises:
        InputError: if the files of a run cannot be read, or lack its end, or it has not measured the metric.
    """
    ended = []
    for trial in trials:
        folder = manifest.of(trial.job).end.folder
        assert folder is not None, "a run that ended has a folder"
        ended.append((trial, folder))
    results = read_ended(ended, metric, sign)
    for result in results:
        if result.status == DONE and math.isnan(float(result.run.metrics.iloc[-1][metric])):
            measured = [name for name in VALIDATION_SCORES if result.run.metrics[name].notna().any()]
            hint = f"measured: {', '.join(measured)}" if measured else "there is no validation split"
            raise InputError(f"tune.metric={metric}: {result.run.folder} has not measured it; {hint}")
    return results


def read_ended(ended: Iterable[tuple[Trial, Path]], metric: str, sign: int) -> list[TrialResult]:
    """As :func:`read_results`, from the run folder of each trial."""
    results = []
    for trial, folder in ended:
        run = read_run(folder)
        status = _status(trial, run)
        score = math.inf
        if status != DIVERGED:
            require_end(run)
        if status == DONE:
            value = float(run.metrics.iloc[-1][metric])
            score = sign * value if math.isfinite(value) else math.inf
        values = run.trained[metric].astype(float).tolist() if metric in run.trained else []
        course = Course(tuple(values), whole=status == DONE)
        results.append(TrialResult(trial, run, status, score, course))
    return results


def _status(trial: Trial, run: Run) -> str:
    judged = any(text.startswith(f"{BOUNDS}=") for text in trial.job.overrides)
    if run.status == STOPPED and judged:
        return PRUNED
    return DONE if run.status in ENDED else DIVERGED


def best(trials: Sequence[TrialResult]) -> TrialResult:
    """The trial with the lowest score; the first of equal ones."""
    return min(trials, key=lambda result: result.score)


def write_trials(
    path: Path, trials: Sequence[TrialResult], chosen: Iterable[TrialResult], folder: Path
) -> None:
    """Write trials.csv: a row per trial with its budget, settings and final metrics.

    Args:
        path: the file.
        trials: the trials of all optimizers.
        chosen: the winners, once they are known.
        folder: run folders are written relative to it.
    """
    winners = [result.trial for result in chosen]
    options = dict.fromkeys(option for result in trials for option in result.trial.point)
    rows = [
        {
            "optimizer": result.trial.optimizer,
            "trial": result.trial.number,
            "status": result.status,
            "winner": result.trial in winners,
            **{option: _cell(result.trial.point.get(option, "")) for option in options},
            **{name: result.last.get(name) for name in _SHOWN},
            **{name: result.trial.budget.get(name) for name in BUDGET},
            "run": result.run.folder.relative_to(folder).as_posix(),
        }
        for result in trials
    ]
    write_csv(path, rows)


def write_winners(path: Path, reruns: Sequence[TrialResult], folder: Path) -> None:
    """Write winners.csv: a row per rerun of a winner."""
    options = dict.fromkeys(option for result in reruns for option in result.trial.point)
    rows = [
        {
            "optimizer": result.trial.optimizer,
            "seed": result.trial.seed,
            "status": result.status,
            **{option: _cell(result.trial.point.get(option, "")) for option in options},
            **{name: result.last.get(name) for name in (*_SHOWN, *_ALL)},
            "run": result.run.folder.relative_to(folder).as_posix(),
        }
        for result in reruns
    ]
    write_csv(path, rows)


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as CSV; a crash leaves either the old file or the new one."""
    write_text(path, pd.DataFrame(rows).to_csv(index=False, lineterminator="\n"))


def _cell(value: Any) -> Any:
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else show(value)


BOUNDS, METRIC = "trainer.early_stop.bounds", "trainer.early_stop.metric"
"""The options of a run by which it ends itself, so that pruning works with every launcher."""

STARTUP = 4
"""Trials that must have come to their end before the next ones are judged by them."""


@dataclass(frozen=True)
class Course:
    """The evaluations of a trial.

    Attributes:
        values: the metric at the first, second, … evaluation; NaN where it is not finite.
        whole: whether the trial came to its end; a trial that was pruned or diverged did not.
    """

    values: tuple[float, ...]
    whole: bool


class Pruner(ABC):
    """Decides by which values at its evaluations a trial is judged.

    It looks at nothing but the trials placed before, so that a search that is resumed, or runs more jobs at a
    time, prunes the same trials.
    """

    prunes = True

    @abstractmethod
    def bounds(self, earlier: Sequence[Course]) -> list[float]:
        """What the best value so far must not be worse than, at the first, second, … evaluation.

        Args:
            earlier: the trials of the same optimizer that have ended, in the order of their numbers.

        Returns:
            an empty list if the next trials are not judged.
        """

    def overrides(self, earlier: Sequence[Course], metric: str) -> list[str]:
        """The overrides by which the next trials end themselves."""
        bounds = self.bounds(earlier)
        return [f"{METRIC}={metric}", f"{BOUNDS}={show(bounds)}"] if bounds else []


class NoPruner(Pruner):
    """Every trial has its whole length."""

    prunes = False

    def bounds(self, earlier: Sequence[Course]) -> list[float]:
        """None."""
        return []


class MedianPruner(Pruner):
    """Optuna's median rule (``optuna.pruners.MedianPruner``; Golovin et al., Google Vizier, KDD 2017).

    A trial ends at an evaluation where its best value so far is worse than the median of what the earlier
    trials had at this evaluation, counting those that came to their end.
    """

    def bounds(self, earlier: Sequence[Course]) -> list[float]:
        """The medians, once :data:`STARTUP` trials have come to their end."""
        whole = [course.values for course in earlier if course.whole]
        if len(whole) < STARTUP:
            return []
        medians = []
        for values in zip(*whole, strict=False):
            finite = [value for value in values if math.isfinite(value)]
            if not finite:
                break
            medians.append(float(median(finite)))  # every digit: a trial that ties with it goes on
        return medians


PRUNERS: dict[str, type[Pruner]] = {"none": NoPruner, "median": MedianPruner}
