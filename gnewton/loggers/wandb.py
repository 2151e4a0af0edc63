"""Weights & Biases."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from gnewton.loggers import (
    LOGGERS,
    METRICS,
    Logger,
    LoggerRecipe,
    RunCard,
    numbers,
    rate_numbers,
    step_numbers,
)
from gnewton.options import option
from gnewton.runfiles import ENDED, RESULT_FILE

MODES = ("online", "offline", "disabled")


@LOGGERS.register("wandb")
@dataclass(kw_only=True)
class WandbRecipe(LoggerRecipe):
    """Options of the Weights & Biases logger."""

    package: ClassVar[str] = "wandb"
    extra: ClassVar[str] = "wandb"

    project: str | None = option(None, help="project of Weights & Biases; null: WANDB_PROJECT, else gnewton")
    entity: str | None = option(
        None, help="user or team; null: WANDB_ENTITY, else the default one of the account"
    )
    mode: str | None = option(
        None,
        help="online: log in and send; offline: files in the run folder, for wandb sync; disabled; "
        "null: WANDB_MODE",
        choices=MODES,
    )

    def build(self) -> Logger:
        """Build the logger; it logs in when the run starts."""
        return WandbLogger(self.project, self.entity, self.mode)


class WandbLogger(Logger):
    """One W&B run per run folder, continued under the same id.

    An addition leaves the options of the W&B run as they are; a W&B run that begins with one has none. W&B
    sets a status whenever a process leaves a run, and does not tell the one before: after an addition it is
    "finished" if the run folder says that the run came to its end, else "failed", also for a run that W&B
    called crashed or killed or that is still under way.

    Args:
        project, entity: of the run; None: the values of WANDB_PROJECT and WANDB_ENTITY.
        mode: "online"; "offline": files in the run folder for ``wandb sync``; "disabled"; None: the value of
            WANDB_MODE, else online.
    """

    def __init__(self, project: str | None, entity: str | None, mode: str | None) -> None:
        self._project = project
        self._entity = entity
        self._mode = mode
        self._run: Any = None
        self._added_to: Path | None = None

    def start(self, card: RunCard) -> None:
        """Start the W&B run, or continue it."""
        import wandb

        self._added_to = None if card.trains else card.folder
        self._run = wandb.init(
            project=self._project or os.environ.get("WANDB_PROJECT") or "gnewton",
            entity=self._entity,
            mode=self._mode,  # type: ignore[arg-type]
            dir=str(card.folder),
            id=card.folder.name,
            name=card.folder.name,
            group=card.experiment,
            config=dict(card.config) if card.trains else None,
            resume="allow",
            settings=wandb.Settings(silent=True, console="off"),
        )

    def metrics(self, row: Mapping[str, Any]) -> None:
        """Log the columns that have a value, at their step."""
        self._run.log(numbers(row, METRICS), step=int(row["step"]))

    def steps(self, row: Mapping[str, Any]) -> None:
        """Log the training loss and the learning rate, at their step."""
        self._run.log(step_numbers(row), step=int(row["step"]))

    def rates(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Log the rate of each group, at the step of the update."""
        for step, values in rate_numbers(rows).items():
            self._run.log(values, step=step)

    def image(self, name: str, file: Path, step: int) -> None:
        """Log the image; W&B takes no row before its last one, so that the step is in the caption."""
        import wandb

        self._run.log({name: wandb.Image(str(file), caption=f"step {step:,}")})

    def finish(self, ended_well: bool) -> None:
        """Close the run, after an addition with its own end; this waits until all data are sent."""
        if self._added_to is not None:
            ended_well = _came_to_its_end(self._added_to)
        self._run.finish(exit_code=0 if ended_well else 1)


def _came_to_its_end(folder: Path) -> bool:
    try:
        return json.loads((folder / RESULT_FILE).read_text(encoding="utf-8"))["status"] in ENDED
    except (OSError, ValueError, KeyError, TypeError):  # killed or under way
        return False
