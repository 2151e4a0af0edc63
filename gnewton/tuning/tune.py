"""Tune several optimizers on equal terms: trials, choice of the winners on validation, reruns of these."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gnewton.options import show
from gnewton.report.measures import Spread
from gnewton.report.tables import Column, Table, as_text, significant
from gnewton.runfiles import DIVERGED, FAILED
from gnewton.sweep.job import Job
from gnewton.sweep.manifest import NAME, Manifest
from gnewton.sweep.sweep import Orders, run_sweep
from gnewton.tuning.samplers import SAMPLERS, Known, Point, Sampler
from gnewton.tuning.settings import SpaceSettings, TuneSettings
from gnewton.tuning.space import overrides_of
from gnewton.tuning.trials import Finished, Trial, best, finished, write_csv, write_trials, write_winners

Compose = Callable[[Sequence[Sequence[str]]], list[Job]]
"""Composes and checks one configuration for each list of overrides."""


@dataclass(frozen=True)
class Contestant:
    """An optimizer, and what all its runs share.

    Attributes:
        optimizer: its name.
        overrides: of all its runs.
        seed: of its trials.
        budget: what all trials share, of whatever optimizer.
    """

    optimizer: str
    overrides: tuple[str, ...]
    seed: int
    budget: dict[str, Any]


@dataclass(frozen=True)
class Search:
    """What is to be tuned, and how runs are made.

    Attributes:
        settings: of the search.
        spaces: of the optimizers.
        contestants: the optimizers.
        compose: makes jobs of overrides.
    """

    settings: TuneSettings
    spaces: SpaceSettings
    contestants: tuple[Contestant, ...]
    compose: Compose

    @property
    def sampler(self) -> Sampler:
        """Places the trials."""
        return SAMPLERS[self.settings.sampler](self.settings.seed, self.settings.batch)

    def check(self) -> None:
        """Compose the corners of every space, so that no trial is refused later.

        Raises:
            InputError: if the sampler is not there, a space is not declared or leads out of what is allowed.
        """
        self.sampler.check()
        corners = []
        for each in self.contestants:
            space = self.spaces.of(each.optimizer)
            for share in (0.0, 1.0):
                point = space.point([share] * len(space.dimensions))
                corners.append([*each.overrides, *overrides_of(point)])
        self.compose(corners)

    def next_trials(self, known: dict[str, list[Finished]]) -> list[Trial]:
        """The trials to be made after those that have ended, of every optimizer as many."""
        found = []
        for each in self.contestants:
            before = known[each.optimizer]
            left = self.settings.trials - len(before)
            count = min(left, self.sampler.at_a_time(self.settings.trials))
            history = [Known(dict(trial.trial.point), trial.score) for trial in before]
            points = self.sampler.place(self.spaces.of(each.optimizer), history, count) if count else []
            jobs = self.compose([[*each.overrides, *overrides_of(point)] for point in points])
            for number, (point, job) in enumerate(zip(points, jobs, strict=True), len(before) + 1):
                found.append(Trial(each.optimizer, number, point, job, each.seed, each.budget))
        return found

    def reruns(self, winners: Sequence[Finished]) -> list[Trial]:
        """The winners once more, with seeds that no trial had."""
        found = []
        for each, winner in zip(self.contestants, winners, strict=True):
            shared = [text for text in each.overrides if not text.startswith("seed=")]
            seeds = [each.seed + number for number in range(1, self.settings.repeats + 1)]
            point: Point = dict(winner.trial.point)
            jobs = self.compose([[*shared, *overrides_of(point), f"seed={seed}"] for seed in seeds])
            for number, (seed, job) in enumerate(zip(seeds, jobs, strict=True), 1):
                found.append(Trial(each.optimizer, number, point, job, seed, each.budget))
        return found


def tune(folder: Path, search: Search, orders: Orders) -> None:
    """Make all trials and reruns that have not been made yet; leave CSV files and say what came of it.

    A diverged trial is a trial with the worst score. A failed one, as one that was killed, ends the search,
    which can be taken up: the winner would be chosen from fewer trials than the others had.

    Args:
        folder: of the search: trials/ and winners/ in it are the folders of two sweeps.
        search: what to do.
        orders: how jobs are run.

    Raises:
        SweepFailed, Interrupted: see :func:`gnewton.sweep.sweep.run_sweep`.
    """
    settings, names = search.settings, [each.optimizer for each in search.contestants]
    orders = replace(orders, bad=(FAILED,))
    write_csv(folder / "space.csv", [row for name in names for row in search.spaces.of(name).rows()])
    manifest = open_manifest(folder / "trials")
    known: dict[str, list[Finished]] = {name: [] for name in names}
    while new := search.next_trials(known):
        for trial in _made(new, manifest, search, orders):
            known[trial.trial.optimizer].append(trial)
        write_trials(folder / "trials.csv", _all(known), [], folder)
    winners = [best(trials) for trials in known.values()]
    write_trials(folder / "trials.csv", _all(known), winners, folder)
    for winner in winners:
        if winner.status == DIVERGED:
            orders.say(f"{winner.trial.optimizer}: every trial diverged; the first one stands for it")
    manifest = open_manifest(folder / "winners")
    reruns = _made(search.reruns(winners), manifest, search, orders)
    write_winners(folder / "winners.csv", reruns, folder)
    orders.say("\n" + as_text([result_table(settings, known, winners, reruns)]))


def open_manifest(folder: Path) -> Manifest:
    """The manifest of a sweep that may have begun before."""
    folder.mkdir(exist_ok=True)
    return Manifest.load(folder) if (folder / NAME).exists() else Manifest(folder)


def result_table(
    settings: TuneSettings,
    known: dict[str, list[Finished]],
    winners: Sequence[Finished],
    reruns: Sequence[Finished],
) -> Table:
    """One row per optimizer: what was chosen from how many trials, and what its reruns came to."""
    columns = [
        Column("validation loss", "validation_loss", infinite=DIVERGED),
        Column("test loss", "test_loss", infinite=DIVERGED),
        Column("test accuracy", "test_accuracy", scale=100, unit=" %", infinite=DIVERGED),
        Column("training s", "train_seconds", infinite=DIVERGED),
    ]
    rows = []
    for winner in winners:
        name = winner.trial.optimizer
        own = [each for each in reruns if each.trial.optimizer == name]
        ends = {column.measure: Spread.over(_end(each, column.measure) for each in own) for column in columns}
        rows.append(
            [
                name,
                ", ".join(f"{option}={show(value)}" for option, value in winner.trial.point.items()),
                _count(known[name]),
                significant(settings.sign * winner.score) if winner.status != DIVERGED else DIVERGED,
                *(column.cell(ends) for column in columns),
            ]
        )
    metric = settings.metric.replace("_", " ")
    title = f"{settings.trials} trials each, chosen by {metric}; {settings.repeats} reruns with fresh seeds"
    headings = ["optimizer", "chosen", "trials", f"{metric} of the trial", *(each.title for each in columns)]
    return Table(title, headings, rows, [[False] * len(headings) for _ in rows])


def _count(trials: Sequence[Finished]) -> str:
    diverged = sum(each.status == DIVERGED for each in trials)
    return f"{len(trials)} ({diverged} diverged)" if diverged else str(len(trials))


def _made(trials: Sequence[Trial], manifest: Manifest, search: Search, orders: Orders) -> list[Finished]:
    manifest.add(trial.job for trial in trials)
    run_sweep(manifest, orders)
    return finished(trials, manifest, search.settings.metric, search.settings.sign)


def _all(known: dict[str, list[Finished]]) -> list[Finished]:
    return [trial for trials in known.values() for trial in trials]


def _end(trial: Finished, measure: str) -> float:
    """The value at the end; the worst there is for a diverged run."""
    if trial.status == DIVERGED:
        return float("-inf") if measure.endswith("accuracy") else float("inf")
    return float(trial.last.get(measure, float("nan")))
