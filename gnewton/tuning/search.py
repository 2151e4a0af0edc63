"""Tune several optimizers with equal budgets: trials, winners by validation metric, reruns of the winners."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gnewton.options import option, show
from gnewton.report.measures import Spread, worst_of
from gnewton.report.tables import Column, Table, as_text, significant
from gnewton.runfiles import DIVERGED, DONE, FAILED, VALIDATION_SCORES
from gnewton.sweep.manifest import NAME, Job, JobEnd, Manifest
from gnewton.sweep.runner import Orders, run_sweep
from gnewton.tuning.space import SAMPLERS, Point, Sampler, ScoredPoint, SpaceSettings, overrides_of
from gnewton.tuning.trials import (
    PRUNED,
    PRUNERS,
    Pruner,
    Trial,
    TrialResult,
    best,
    read_ended,
    read_results,
    write_csv,
    write_trials,
    write_winners,
)

Compose = Callable[[Sequence[Sequence[str]]], list[Job]]
"""Composes and checks a configuration for each list of overrides, and returns the jobs."""


@dataclass(kw_only=True)
class TuneSettings:
    """The options of ``gnewton tune``, the same for every optimizer."""

    name: str
    trials: int = option(16, help="runs of every optimizer, each at one point of its space", at_least=1)
    sampler: str = option(
        "sobol",
        help="sobol: quasi-random; random; optuna: its TPE sampler (pip install 'gnewton[optuna]')",
        choices=tuple(SAMPLERS),
    )
    batch: int = option(
        4,
        help="trials placed at a time, from the ends of those before, by optuna or with a pruner",
        at_least=1,
    )
    pruner: str = option(
        "none",
        help="none: every trial has its whole length; median: one ends where its best value so far is worse "
        "than the median of the earlier trials of its optimizer at the same evaluation",
        choices=tuple(PRUNERS),
    )
    seed: int = option(0, help="of the sampler; the trials themselves have the seed of the run", at_least=0)
    metric: str = option(
        "validation_loss",
        help="at the end of a trial, by which the winner is chosen; or validation_accuracy",
        choices=VALIDATION_SCORES,
    )
    repeats: int = option(3, help="runs of each winner with fresh seeds, which no trial had", at_least=1)

    @property
    def sign(self) -> int:
        """Factor on the metric that makes lower scores better."""
        return -1 if self.metric.endswith("accuracy") else 1


@dataclass(frozen=True)
class Contestant:
    """An optimizer and the settings that all its runs share.

    Attributes:
        optimizer: its name.
        overrides: of all its runs.
        seed: of its trials.
        budget: values of the options in :data:`~gnewton.tuning.space.BUDGET`, equal for all optimizers.
    """

    optimizer: str
    overrides: tuple[str, ...]
    seed: int
    budget: dict[str, Any]


@dataclass(frozen=True)
class Search:
    """A search: the optimizers, their spaces and the common options.

    Attributes:
        settings: the options of the search.
        spaces: the search spaces of the optimizers.
        contestants: the optimizers.
        compose: turns overrides into jobs.
    """

    settings: TuneSettings
    spaces: SpaceSettings
    contestants: tuple[Contestant, ...]
    compose: Compose

    @property
    def pruner(self) -> Pruner:
        """The rule by which trials end before their length is over."""
        return PRUNERS[self.settings.pruner]()

    @property
    def learns(self) -> bool:
        """Whether trials depend on the ends of earlier ones."""
        return self.sampler.learns or self.pruner.prunes

    @property
    def sampler(self) -> Sampler:
        """The sampler that places the trials."""
        return SAMPLERS[self.settings.sampler](self.settings.seed)

    def check(self) -> None:
        """Compose the corners of every space, so that no trial is refused later.

        Raises:
            InputError: if the sampler is not installed, a space is missing, or a corner is not a valid run.
        """
        self.sampler.check()
        corners = []
        for contestant in self.contestants:
            space = self.spaces.of(contestant.optimizer)
            for share in (0.0, 1.0):
                point = space.point([share] * len(space.dimensions))
                corners.append([*contestant.overrides, *overrides_of(point)])
        self.compose(corners)

    def next_trials(self, known: dict[str, list[TrialResult]]) -> list[Trial]:
        """The next trials after those in ``known``, equally many for each optimizer."""
        trials = []
        for contestant in self.contestants:
            results = known[contestant.optimizer]
            remaining = self.settings.trials - len(results)
            count = min(remaining, self.settings.batch if self.learns else remaining)
            history = [_scored(result, self.settings.sign) for result in results]
            space = self.spaces.of(contestant.optimizer)
            points = self.sampler.place(space, history, count) if count else []
            bounds = self.pruner.overrides([result.course for result in results], self.settings.metric)
            jobs = self.compose([[*contestant.overrides, *overrides_of(point), *bounds] for point in points])
            for number, (point, job) in enumerate(zip(points, jobs, strict=True), len(results) + 1):
                trials.append(
                    Trial(contestant.optimizer, number, point, job, contestant.seed, contestant.budget)
                )
        return trials

    def reruns(self, winners: Sequence[TrialResult]) -> list[Trial]:
        """The winners again, with seeds that no trial had."""
        trials = []
        for contestant, winner in zip(self.contestants, winners, strict=True):
            shared = [text for text in contestant.overrides if not text.startswith("seed=")]
            seeds = [contestant.seed + number for number in range(1, self.settings.repeats + 1)]
            point: Point = dict(winner.trial.point)
            jobs = self.compose([[*shared, *overrides_of(point), f"seed={seed}"] for seed in seeds])
            for number, (seed, job) in enumerate(zip(seeds, jobs, strict=True), 1):
                trials.append(Trial(contestant.optimizer, number, point, job, seed, contestant.budget))
        return trials


def tune(folder: Path, search: Search, orders: Orders) -> None:
    """Run all trials and reruns that are not done yet, write the CSV files and print the result.

    A trial that diverged or was pruned has the worst score. One that failed or was killed ends the search,
    which can be resumed: otherwise one winner would be chosen from fewer trials than the others.

    Args:
        folder: of the search; its subfolders trials/ and winners/ are the folders of two sweeps.
        search: the search.
        orders: how jobs are run.

    Raises:
        SweepFailed, Interrupted: see :func:`gnewton.sweep.runner.run_sweep`.
    """
    settings, names = search.settings, [contestant.optimizer for contestant in search.contestants]
    orders = replace(orders, bad=(FAILED,))
    write_csv(folder / "space.csv", [row for name in names for row in search.spaces.of(name).rows()])
    manifest = open_manifest(folder / "trials")
    known: dict[str, list[TrialResult]] = {name: [] for name in names}
    leaders = Leaders(search)
    while trials := search.next_trials(known):
        manifest.add(trial.job for trial in trials)
        leaders.learn(trials, manifest)
        for result in _run(trials, manifest, search, replace(orders, remark=leaders.watch(trials))):
            known[result.trial.optimizer].append(result)
        write_trials(folder / "trials.csv", _all(known), [], folder)
    winners = [best(results) for results in known.values()]
    write_trials(folder / "trials.csv", _all(known), winners, folder)
    for winner in winners:
        if winner.status == DIVERGED:
            orders.say(f"{winner.trial.optimizer}: every trial diverged; the first one is taken")
    manifest = open_manifest(folder / "winners")
    reruns = _run(search.reruns(winners), manifest, search, orders)
    write_winners(folder / "winners.csv", reruns, folder)
    orders.say("\n" + as_text([result_table(settings, known, winners, reruns)]))


class Leaders:
    """The best trial of each optimizer so far, for the lines that a search prints.

    Args:
        search: the search.
    """

    def __init__(self, search: Search) -> None:
        self._settings = search.settings
        self._best: dict[str, float] = {}

    def watch(self, trials: Sequence[Trial]) -> Callable[[JobEnd], str]:
        """A function of the end of one of these trials: a remark if it is the best so far or was pruned."""
        by_job = {trial.job.digest: trial for trial in trials}
        return lambda end: self._remark(by_job[end.digest], end)

    def learn(self, trials: Sequence[Trial], manifest: Manifest) -> None:
        """Take note of trials that ended before the search was resumed."""
        for trial in trials:
            self._remark(trial, manifest.of(trial.job).end)

    def _remark(self, trial: Trial, end: JobEnd) -> str:
        settings = self._settings
        if end.status != DONE or end.folder is None:
            return ""
        (result,) = read_ended([(trial, end.folder)], settings.metric, settings.sign)
        if result.status == PRUNED:
            return f"pruned at epoch {result.last['epoch']:g}"
        if not result.score < self._best.get(trial.optimizer, math.inf):
            return ""
        self._best[trial.optimizer] = result.score
        value = significant(settings.sign * result.score)
        metric = settings.metric.replace("_", " ")
        return f"best of {trial.optimizer} so far: {metric} {value} at {_settings_of(trial)}"


def _scored(result: TrialResult, sign: int) -> ScoredPoint:
    """What a sampler learns from a trial."""
    values = [value for value in result.course.values if math.isfinite(value)]
    pruned = (len(result.course.values), sign * values[-1]) if result.status == PRUNED and values else None
    return ScoredPoint(dict(result.trial.point), result.score, pruned)


def open_manifest(folder: Path) -> Manifest:
    """The manifest of the sweep in ``folder``; a new one if the sweep has not begun."""
    folder.mkdir(exist_ok=True)
    return Manifest.load(folder) if (folder / NAME).exists() else Manifest(folder)


def result_table(
    settings: TuneSettings,
    known: dict[str, list[TrialResult]],
    winners: Sequence[TrialResult],
    reruns: Sequence[TrialResult],
) -> Table:
    """One row per optimizer: the winning settings, the number of trials, and the result of the reruns."""
    columns = [
        Column("validation loss", "validation_loss", infinite=DIVERGED),
        Column("test loss", "test_loss", infinite=DIVERGED),
        Column("test accuracy", "test_accuracy", scale=100, unit=" %", infinite=DIVERGED),
        Column("training s", "train_seconds", infinite=DIVERGED),
    ]
    rows = []
    for winner in winners:
        name = winner.trial.optimizer
        results = [result for result in reruns if result.trial.optimizer == name]
        ends = {
            column.measure: Spread.over(_final_value(result, column.measure) for result in results)
            for column in columns
        }
        rows.append(
            [
                name,
                _settings_of(winner.trial),
                _count(known[name]),
                significant(settings.sign * winner.score) if winner.status != DIVERGED else DIVERGED,
                *(column.cell(ends) for column in columns),
            ]
        )
    metric = settings.metric.replace("_", " ")
    title = f"{settings.trials} trials each, chosen by {metric}; {settings.repeats} reruns with fresh seeds"
    headings = [
        "optimizer",
        "chosen",
        "trials",
        f"{metric} of the trial",
        *(column.title for column in columns),
    ]
    return Table(title, headings, rows, [[False] * len(headings) for _ in rows])


def _settings_of(trial: Trial) -> str:
    return ", ".join(f"{option}={show(value)}" for option, value in trial.point.items())


def _count(results: Sequence[TrialResult]) -> str:
    """The number of trials, and how many of them were pruned or diverged."""
    counts = {status: sum(result.status == status for result in results) for status in (PRUNED, DIVERGED)}
    parts = [f"{count} {status}" for status, count in counts.items() if count]
    return f"{len(results)} ({', '.join(parts)})" if parts else str(len(results))


def _run(trials: Sequence[Trial], manifest: Manifest, search: Search, orders: Orders) -> list[TrialResult]:
    manifest.add(trial.job for trial in trials)
    run_sweep(manifest, orders)
    return read_results(trials, manifest, search.settings.metric, search.settings.sign)


def _all(known: dict[str, list[TrialResult]]) -> list[TrialResult]:
    return [result for results in known.values() for result in results]


def _final_value(result: TrialResult, measure: str) -> float:
    """A metric at the end of a run; the worst possible value for a diverged one."""
    if result.status == DIVERGED:
        return worst_of(measure)
    return float(result.last.get(measure, float("nan")))
