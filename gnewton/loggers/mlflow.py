"""MLflow."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from gnewton.loggers.base import LOGGERS, METRICS, Logger, LoggerRecipe, RunCard, numbers, rate_numbers

TAG = "gnewton.run"
"""The tag that holds the name of the run folder, by which a run that goes on is found again."""

_FOLDERS = "MLFLOW_ALLOW_FILE_STORE"
_MOST = 1000  # metrics that MLflow takes at once
_MOST_OPTIONS = 100


@LOGGERS.register("mlflow")
@dataclass(kw_only=True)
class MlflowRecipe(LoggerRecipe):
    """A run of an MLflow experiment, on a tracking server or in a local store."""

    package: ClassVar[str] = "mlflow"
    extra: ClassVar[str] = "mlflow"

    tracking_uri: str
    experiment: str

    def build(self) -> Logger:
        """A logger that connects when the run starts."""
        return MlflowLogger(self.tracking_uri, self.experiment)


class MlflowLogger(Logger):
    """One MLflow run for each run folder, by the client alone, which leaves MLflow's global state as it is.

    Args:
        tracking_uri: of the server or the store.
        experiment: its name; made where it is missing.
    """

    def __init__(self, tracking_uri: str, experiment: str) -> None:
        self._tracking_uri = tracking_uri
        self._experiment = experiment
        self._client: Any = None
        self._run = ""

    def start(self, card: RunCard) -> None:
        """Begin the MLflow run, or go on with it."""
        os.environ.setdefault(_FOLDERS, "true")  # where the store is a folder, MLflow asks for consent
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self._client = MlflowClient(self._tracking_uri)
        found = self._client.get_experiment_by_name(self._experiment)
        experiment = found.experiment_id if found else self._client.create_experiment(self._experiment)
        runs = self._client.search_runs([experiment], f"tags.`{TAG}` = '{card.folder.name}'")
        if runs:
            self._run = runs[0].info.run_id
            self._client.set_terminated(self._run, "RUNNING")
            return
        tags = {TAG: card.folder.name, "gnewton.name": card.experiment}
        self._run = self._client.create_run(experiment, run_name=card.folder.name, tags=tags).info.run_id
        options = [Param(name, str(value)) for name, value in card.config.items()]
        for start in range(0, len(options), _MOST_OPTIONS):
            self._client.log_batch(self._run, params=options[start : start + _MOST_OPTIONS])

    def metrics(self, row: Mapping[str, Any]) -> None:
        """The columns that have a value, at their step."""
        self._log({int(row["step"]): numbers(row, METRICS)})

    def rates(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """The rate of each group, at the step of the update."""
        self._log(rate_numbers(rows))

    def finish(self, ended_well: bool) -> None:
        """Say how the run ended."""
        self._client.set_terminated(self._run, "FINISHED" if ended_well else "FAILED")

    def _log(self, values: Mapping[int, Mapping[str, float]]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        found = [
            Metric(name, value, now, step) for step, row in values.items() for name, value in row.items()
        ]
        for start in range(0, len(found), _MOST):
            self._client.log_batch(self._run, metrics=found[start : start + _MOST])
