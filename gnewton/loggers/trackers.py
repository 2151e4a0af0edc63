"""The trackers: TensorBoard (event files in the run folder), Weights & Biases, MLflow."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

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

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

# --- TensorBoard --------------------------------------------------------------------------------------------

EVENT_FOLDER = "tensorboard"


@LOGGERS.register("tensorboard")
@dataclass(kw_only=True)
class TensorBoardRecipe(LoggerRecipe):
    """Options of the TensorBoard logger, which writes event files into ``tensorboard/`` of the run folder."""

    package: ClassVar[str] = "tensorboard"
    extra: ClassVar[str] = "tensorboard"

    flush_seconds: int = option(30, help="seconds between two writes to the disk", at_least=1)

    def build(self) -> Logger:
        """Build the logger; it opens its file when the run starts."""
        return TensorBoardLogger(self.flush_seconds)


class TensorBoardLogger(Logger):
    """Scalars and images through torch's writer.

    A run that is continued from a checkpoint hides the events of later steps.

    Args:
        flush_seconds: interval at which the file is flushed to the disk.
    """

    def __init__(self, flush_seconds: int) -> None:
        self._flush_seconds = flush_seconds
        self._writer: SummaryWriter | None = None

    def start(self, card: RunCard) -> None:
        """Open an event file and write the configuration into it as text."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(
            str(card.folder / EVENT_FOLDER),
            purge_step=card.step + 1 if card.step and card.trains else None,
            flush_secs=self._flush_seconds,
        )
        if card.trains:
            lines = "\n".join(f"    {name}: {value}" for name, value in card.config.items())
            self._writer.add_text("config", lines, card.step)

    def metrics(self, row: Mapping[str, Any]) -> None:
        """Write a scalar for each column that has a value."""
        assert self._writer is not None
        for name, value in numbers(row, METRICS).items():
            self._writer.add_scalar(name, value, int(row["step"]))

    def steps(self, row: Mapping[str, Any]) -> None:
        """Write the training loss and the learning rate."""
        assert self._writer is not None
        for name, value in step_numbers(row).items():
            self._writer.add_scalar(name, value, int(row["step"]))

    def rates(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write a scalar for each group."""
        assert self._writer is not None
        for step, values in rate_numbers(rows).items():
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def image(self, name: str, file: Path, step: int) -> None:
        """Write the image."""
        import numpy as np
        from PIL import Image

        assert self._writer is not None
        with Image.open(file) as image:
            self._writer.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def finish(self, ended_well: bool) -> None:
        """Close the event file."""
        assert self._writer is not None
        self._writer.close()


# --- Weights & Biases ---------------------------------------------------------------------------------------

WANDB_MODES = ("online", "offline", "disabled")


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
        choices=WANDB_MODES,
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


# --- MLflow -------------------------------------------------------------------------------------------------

MLFLOW_TAG = "gnewton.run"
"""Tag with the name of the run folder, by which a continued run finds its MLflow run."""

_FILE_STORE = "MLFLOW_ALLOW_FILE_STORE"
_MAX_METRICS, _MAX_PARAMS = 1000, 100  # limits of MLflow for one batch


@LOGGERS.register("mlflow")
@dataclass(kw_only=True)
class MlflowRecipe(LoggerRecipe):
    """A run of an MLflow experiment, on a tracking server or in a local store."""

    package: ClassVar[str] = "mlflow"
    extra: ClassVar[str] = "mlflow"

    tracking_uri: str = option(
        "${oc.env:MLFLOW_TRACKING_URI,mlruns}", help="a server, or a folder that serves as the store"
    )
    experiment: str = option(
        "${oc.env:MLFLOW_EXPERIMENT_NAME,gnewton}", help="experiment of MLflow; made where it is missing"
    )

    def build(self) -> Logger:
        """Build the logger; it connects when the run starts."""
        return MlflowLogger(self.tracking_uri, self.experiment)


class MlflowLogger(Logger):
    """One MLflow run per run folder, through the client, which does not touch MLflow's global state.

    Args:
        tracking_uri: of the server or the store.
        experiment: its name; it is created if missing.
    """

    def __init__(self, tracking_uri: str, experiment: str) -> None:
        self._tracking_uri = tracking_uri
        self._experiment = experiment
        self._client: Any = None
        self._run = ""
        self._keeps_status = False

    def start(self, card: RunCard) -> None:
        """Create the MLflow run, or continue it."""
        os.environ.setdefault(_FILE_STORE, "true")  # MLflow refuses a folder as its store without it
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self._client = MlflowClient(self._tracking_uri)
        known = self._client.get_experiment_by_name(self._experiment)
        experiment = known.experiment_id if known else self._client.create_experiment(self._experiment)
        runs = self._client.search_runs([experiment], f"tags.`{MLFLOW_TAG}` = '{card.folder.name}'")
        if runs:
            self._run = runs[0].info.run_id
            self._keeps_status = not card.trains  # its status is not ours to set
            if card.trains:
                self._client.set_terminated(self._run, "RUNNING")
            return
        tags = {MLFLOW_TAG: card.folder.name, "gnewton.name": card.experiment}
        self._run = self._client.create_run(experiment, run_name=card.folder.name, tags=tags).info.run_id
        options = [Param(name, str(value)) for name, value in card.config.items()]
        for start in range(0, len(options), _MAX_PARAMS):
            self._client.log_batch(self._run, params=options[start : start + _MAX_PARAMS])

    def metrics(self, row: Mapping[str, Any]) -> None:
        """Log the columns that have a value, at their step."""
        self._log({int(row["step"]): numbers(row, METRICS)})

    def steps(self, row: Mapping[str, Any]) -> None:
        """Log the training loss and the learning rate, at their step."""
        self._log({int(row["step"]): step_numbers(row)})

    def rates(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Log the rate of each group, at the step of the update."""
        self._log(rate_numbers(rows))

    def image(self, name: str, file: Path, step: int) -> None:
        """Log the image at its step."""
        from PIL import Image

        with Image.open(file) as image:
            self._client.log_image(self._run, image.convert("RGB"), key=name, step=step, synchronous=True)

    def finish(self, ended_well: bool) -> None:
        """Set the status of the MLflow run, unless it was found with one and is only added to."""
        if self._keeps_status:
            return
        self._client.set_terminated(self._run, "FINISHED" if ended_well else "FAILED")

    def _log(self, values: Mapping[int, Mapping[str, float]]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        batch = [
            Metric(name, value, now, step) for step, row in values.items() for name, value in row.items()
        ]
        for start in range(0, len(batch), _MAX_METRICS):
            self._client.log_batch(self._run, metrics=batch[start : start + _MAX_METRICS])
