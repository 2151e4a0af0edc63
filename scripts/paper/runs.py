"""Training runs of the figures: one resumable sweep for all, so that what two figures need is run once."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from omegaconf import DictConfig

from gnewton.cli.composer import Composer
from gnewton.errors import Diverged
from gnewton.experiment.folder import config_hash
from gnewton.experiment.overrides import parse_overrides
from gnewton.experiment.prepare import prepare
from gnewton.experiment.run import run
from gnewton.report.runs import Run, read_run
from gnewton.runfiles import CHECKPOINT_FOLDER, DIVERGED, ENDED, FAILED, LAST, RESULT_FILE
from scripts.study.plan import Trial
from scripts.study.stages import Outcome, run_stage


@dataclass(frozen=True)
class Workshop:
    """Where and how runs are made.

    Attributes:
        folder: of the sweep.
        launcher: overrides of the launcher, such as ``launcher.jobs=2``.
    """

    folder: Path
    launcher: Sequence[str] = ()

    def run(self, trials: Sequence[Trial]) -> list[Outcome]:
        """Make those runs that have not been made yet, and read all of them."""
        return run_stage(self.folder, trials, self.launcher)


class InProcessWorkshop(Workshop):
    """Makes runs in this process, one after the other, which spares each the seconds that a process takes."""

    def run(self, trials: Sequence[Trial]) -> list[Outcome]:
        """Make those runs that are not in the folder yet, and read all of them."""
        return [self._outcome(trial) for trial in trials]

    def _outcome(self, trial: Trial) -> Outcome:
        overrides = [*trial.overrides, f"output_root={self.folder}"]
        prepared = prepare(composed(overrides), overrides)
        finished = self._finished(prepared.config)
        if finished is None:
            with suppress(Diverged):  # that is a result too
                run(prepared)
            finished = self._finished(prepared.config)
        return Outcome(trial, FAILED if finished is None else finished.status, finished)

    def _finished(self, config: DictConfig) -> Run | None:
        """The run of a configuration that came to its end, made by whichever workshop."""
        folders = self.folder.glob(f"**/*_{config_hash(config)}")
        runs = (read_run(folder) for folder in folders if (folder / RESULT_FILE).is_file())
        return next((run for run in runs if run.status in (*ENDED, DIVERGED)), None)


@cache
def _composer() -> Composer:
    return Composer()


def composed(overrides: Sequence[str]) -> DictConfig:
    """The configuration of a run."""
    return _composer().compose(parse_overrides(overrides))


def last_checkpoint(outcome: Outcome) -> Path | None:
    """The checkpoint at the end of a run; None if it has none."""
    if outcome.run is None:
        return None
    path = outcome.run.folder / CHECKPOINT_FOLDER / LAST
    return path if path.is_file() else None
