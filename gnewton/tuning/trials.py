"""Trials and reruns as they ended: their scores, and the CSV files they stay in."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from gnewton.experiment.folder import write_text
from gnewton.options import show
from gnewton.report.runs import Run, read_run, require_end
from gnewton.runfiles import DIVERGED, DONE, ENDED
from gnewton.sweep.job import Job
from gnewton.sweep.manifest import Manifest
from gnewton.tuning.space import BUDGET

_SHOWN = ("train_loss", "validation_loss", "validation_accuracy", "step", "epoch", "train_seconds")
"""Columns of the last row of metrics.csv that trials.csv repeats: none of the test split."""

_ALL = ("test_loss", "test_accuracy", "train_accuracy")
"""Further ones in winners.csv."""


@dataclass(frozen=True)
class Trial:
    """One run of an optimizer at one point of its space.

    Attributes:
        optimizer: its name.
        number: from 1.
        point: the settings that were sampled.
        job: what is run.
        seed: of the run.
        budget: the options of :data:`BUDGET` that it has.
    """

    optimizer: str
    number: int
    point: Mapping[str, Any]
    job: Job
    seed: int
    budget: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Finished:
    """A trial that came to its end, or diverged.

    Attributes:
        trial: which.
        run: its run folder, as read.
        status: "done" or "diverged".
        score: by which trials are compared, less is better; infinite where it diverged.
    """

    trial: Trial
    run: Run
    status: str
    score: float

    @property
    def last(self) -> dict[str, Any]:
        """The last row of metrics.csv; empty where there is none, or where it is not that of an end."""
        if self.status != DONE or self.run.metrics.empty:
            return {}
        return dict(self.run.metrics.iloc[-1])


def finished(trials: Iterable[Trial], manifest: Manifest, metric: str, sign: int) -> list[Finished]:
    """Read the runs of trials, all of which are done or diverged.

    Args:
        trials: in order; two at equal settings have one run.
        manifest: of their sweep.
        metric: the column of metrics.csv that counts.
        sign: what it is multiplied by so that less is better.

    Raises:
        InputError: if the files of a run cannot be read, or lack its end.
    """
    found = []
    for trial in trials:
        folder = manifest.of(trial.job).ended.folder
        assert folder is not None, "a run that ended has a folder"
        run = read_run(folder)
        status = DONE if run.status in ENDED else DIVERGED
        score = math.inf
        if status == DONE:
            require_end(run)
            value = float(run.metrics.iloc[-1][metric])
            score = sign * value if math.isfinite(value) else math.inf
        found.append(Finished(trial, run, status, score))
    return found


def best(trials: Sequence[Finished]) -> Finished:
    """The trial with the least score, of equal ones the first."""
    return min(trials, key=lambda each: each.score)


def write_trials(path: Path, trials: Sequence[Finished], chosen: Iterable[Finished], folder: Path) -> None:
    """trials.csv: a row for each trial with its budget, settings and end.

    Args:
        path: the file.
        trials: of all optimizers.
        chosen: the winners, once they are known.
        folder: what the run folders are relative to.
    """
    winners = [each.trial for each in chosen]
    options = dict.fromkeys(option for each in trials for option in each.trial.point)
    rows = [
        {
            "optimizer": each.trial.optimizer,
            "trial": each.trial.number,
            "status": each.status,
            "winner": each.trial in winners,
            **{option: _cell(each.trial.point.get(option, "")) for option in options},
            **{name: each.last.get(name) for name in _SHOWN},
            **{name: each.trial.budget.get(name) for name in BUDGET},
            "run": each.run.folder.relative_to(folder).as_posix(),
        }
        for each in trials
    ]
    write_csv(path, rows)


def write_winners(path: Path, reruns: Sequence[Finished], folder: Path) -> None:
    """winners.csv: a row for each rerun of each winner."""
    options = dict.fromkeys(option for each in reruns for option in each.trial.point)
    rows = [
        {
            "optimizer": each.trial.optimizer,
            "seed": each.trial.seed,
            "status": each.status,
            **{option: _cell(each.trial.point.get(option, "")) for option in options},
            **{name: each.last.get(name) for name in (*_SHOWN, *_ALL)},
            "run": each.run.folder.relative_to(folder).as_posix(),
        }
        for each in reruns
    ]
    write_csv(path, rows)


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows whole, or not at all."""
    text = io.StringIO()
    pd.DataFrame(rows).to_csv(text, index=False, lineterminator="\n")
    write_text(path, text.getvalue())


def _cell(value: Any) -> Any:
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else show(value)
