"""MLflow."""

from __future__ import annotations

import os
import time
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

TAG = "gnewton.run"
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
        runs = self._client.search_runs([experiment], f"tags.`{TAG}` = '{card.folder.name}'")
        if runs:
            self._run = runs[0].info.run_id
            self._keeps_status = not card.trains  # its status is not ours to set
            if card.trains:
                self._client.set_terminated(self._run, "RUNNING")
            return
        tags = {TAG: card.folder.name, "gnewton.name": card.experiment}
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
