"""Training runs of the figures: one resumable sweep for all, so that what two figures need is run once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig

from gnewton.cli.composer import Composer
from gnewton.experiment.overrides import parse_overrides
from gnewton.runfiles import CHECKPOINT_FOLDER, LAST
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


def composed(overrides: Sequence[str]) -> DictConfig:
    """The configuration of a run."""
    return Composer().compose(parse_overrides(overrides))


def last_checkpoint(outcome: Outcome) -> Path | None:
    """The checkpoint at the end of a run; None if it has none."""
    if outcome.run is None:
        return None
    path = outcome.run.folder / CHECKPOINT_FOLDER / LAST
    return path if path.is_file() else None
