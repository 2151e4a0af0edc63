"""The files that a run writes while it trains: two CSV logs and the checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from gnewton.training.checkpoint import save_checkpoint
from gnewton.training.csvlog import METRICS_COLUMNS, RATES_COLUMNS, CsvLog


class Journal:
    """metrics.csv, rates.csv and checkpoint/ of a run folder, open within the block.

    Args:
        folder: the run folder; None: nothing is written, as in every process of a data-parallel run but one.
        with_rates: whether the optimizer has rates to log.
    """

    def __init__(self, folder: Path | None, with_rates: bool) -> None:
        self._folder = folder
        self._with_rates = with_rates
        self._open = ExitStack()
        self._metrics: CsvLog | None = None
        self._rates: CsvLog | None = None

    def __enter__(self) -> Journal:
        if self._folder is not None:
            (self._folder / "checkpoint").mkdir(exist_ok=True)
            self._metrics = self._open.enter_context(CsvLog(self._folder / "metrics.csv", METRICS_COLUMNS))
            if self._with_rates:
                self._rates = self._open.enter_context(CsvLog(self._folder / "rates.csv", RATES_COLUMNS))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def metrics(self, row: Mapping[str, Any]) -> None:
        """Append one row to metrics.csv."""
        if self._metrics is not None:
            self._metrics.write([row])

    def rates(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append rows to rates.csv."""
        if self._rates is not None:
            self._rates.write(rows)

    def checkpoint(self, name: str, state: dict[str, Any]) -> None:
        """Write one checkpoint."""
        if self._folder is not None:
            save_checkpoint(self.checkpoint_path(name), state)

    def checkpoint_path(self, name: str) -> Path:
        """Where a checkpoint of that name is written."""
        return (self._folder or Path()) / "checkpoint" / name
