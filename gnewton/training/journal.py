"""The files that a run writes while it trains: two CSV logs and the checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from gnewton.errors import InputError
from gnewton.loggers import Logger
from gnewton.runfiles import (
    CHECKPOINT_FOLDER,
    LAST,
    METRICS_COLUMNS,
    METRICS_FILE,
    PREVIOUS,
    RATES_COLUMNS,
    RATES_FILE,
)
from gnewton.training.checkpoint import load_checkpoint, remove_leftovers, save_checkpoint
from gnewton.training.csvlog import CsvLog, check_log


class Journal:
    """metrics.csv, rates.csv and checkpoint/ of a run folder, open within the block.

    Args:
        folder: the run folder; None: nothing is written, as in every process of a data-parallel run but one.
        with_rates: whether the optimizer has rates to log.
        logger: gets every row as well.
    """

    def __init__(self, folder: Path | None, with_rates: bool, logger: Logger | None = None) -> None:
        self._folder = folder
        self._logger = logger
        self._columns: dict[str, tuple[str, ...]] = {METRICS_FILE: METRICS_COLUMNS}
        if with_rates:
            self._columns[RATES_FILE] = RATES_COLUMNS
        self._open = ExitStack()
        self._logs: dict[str, CsvLog] = {}
        self._lengths: Mapping[str, int] = {}

    def __enter__(self) -> Journal:
        if self._folder is not None:
            (self._folder / CHECKPOINT_FOLDER).mkdir(exist_ok=True)
            remove_leftovers(self._folder / CHECKPOINT_FOLDER)
            for name, columns in self._columns.items():
                self._logs[name] = self._open.enter_context(CsvLog(self._folder / name, columns))
            if self._lengths:
                self.rewind(self._lengths)
            else:  # from the beginning, also where a run was killed before its first checkpoint
                for log in self._logs.values():
                    log.clear()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._logs.clear()
        self._open.close()

    def metrics(self, row: Mapping[str, Any]) -> None:
        """Append one row to metrics.csv."""
        self._write(METRICS_FILE, [row])
        if self._logger is not None:
            self._logger.metrics(row)

    def rates(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append rows to rates.csv."""
        self._write(RATES_FILE, rows)
        if self._logger is not None and rows:
            self._logger.rates(rows)

    def lengths(self) -> dict[str, int]:
        """The length of each log in bytes, once it is safe on the disk: what a checkpoint goes with."""
        return {name: log.sync() for name, log in self._logs.items()}

    def rewind(self, lengths: Mapping[str, int]) -> None:
        """Take off the rows that were written after a checkpoint; before the block: when it is entered."""
        self._lengths = lengths
        for name, log in self._logs.items():
            log.cut(lengths[name])

    def check(self, lengths: Mapping[str, int]) -> None:
        """Make sure that the logs still hold the rows that a checkpoint goes with.

        Raises:
            InputError: naming the file that does not.
        """
        if self._folder is None:
            return
        for name, columns in self._columns.items():
            reason = check_log(self._folder / name, columns, int(lengths[name]))
            if reason is not None:
                raise InputError(reason)

    def checkpoint(self, name: str, state: dict[str, Any]) -> None:
        """Write one checkpoint; of the last one, the one before it stays."""
        if self._folder is not None:
            keep = self.checkpoint_path(PREVIOUS) if name == LAST else None
            save_checkpoint(self.checkpoint_path(name), state, keep)

    def load(self, name: str) -> dict[str, Any]:
        """Read one checkpoint, see :func:`gnewton.training.checkpoint.load_checkpoint`."""
        return load_checkpoint(self.checkpoint_path(name))

    def checkpoint_path(self, name: str) -> Path:
        """Where a checkpoint of that name is written."""
        return (self._folder or Path()) / CHECKPOINT_FOLDER / name

    def _write(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        if name in self._logs and rows:
            self._logs[name].write(rows)
