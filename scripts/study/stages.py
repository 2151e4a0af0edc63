"""Run the trials of a study as sweeps, which can be stopped and resumed, and read what came of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from gnewton.cli.composer import Composer
from gnewton.experiment.overrides import parse_overrides
from gnewton.report.runs import Run, read_run
from gnewton.runfiles import DIVERGED, FAILED
from gnewton.sweep.manifest import NAME, JobEnd, Manifest
from gnewton.sweep.runner import Orders, SweepFailed, locked, run_sweep
from scripts.study.plan import Trial


@dataclass(frozen=True)
class Outcome:
    """A trial and its run.

    Attributes:
        trial: what was run.
        status: of the job: done, diverged, failed, …
        run: its files; None if there are none.
    """

    trial: Trial
    status: str
    run: Run | None

    @property
    def lost(self) -> bool:
        """Whether the run ended without a final value."""
        return self.run is None or self.status in (DIVERGED, FAILED) or self.run.trained.empty


def run_stage(folder: Path, trials: Sequence[Trial], launcher: Sequence[str]) -> list[Outcome]:
    """Run those trials that have not been run yet, and read all of them.

    Args:
        folder: of the stage; it holds a sweep that is continued.
        trials: of the stage.
        launcher: overrides of the launcher, such as ``launcher.jobs=2``.

    Raises:
        InputError: before any is run, for a trial that cannot be composed or whose folder holds another run.
        Interrupted: after a signal; the same call continues.
    """
    composer = Composer()
    jobs = {
        trial: composer.check([parse_overrides([*trial.overrides, f"output_root={folder}"])])[0].job
        for trial in trials
    }
    options = composer.options("launch", ("launcher",), parse_overrides(launcher))["launcher"]
    options.check()
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        manifest = Manifest.load(folder) if (folder / NAME).is_file() else Manifest(folder)
        manifest.add(jobs.values())
        try:
            say = partial(print, flush=True)
            run_sweep(manifest, Orders(options, Path.cwd(), composer.require_same, bad=(FAILED,), say=say))
        except SweepFailed as error:  # a failed run is a result too
            print(error, flush=True)
    return [_outcome(trial, manifest.of(jobs[trial]).end) for trial in trials]


def _outcome(trial: Trial, end: JobEnd) -> Outcome:
    return Outcome(trial, end.status, None if end.folder is None else read_run(end.folder))
