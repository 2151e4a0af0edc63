"""Experiment trackers that a run can report to besides its CSV files, by name; all optional.

A new one is a :class:`LoggerRecipe` and its :class:`Logger` in ``trackers``, and a YAML in configs/logger.
"""

from __future__ import annotations

import importlib.util
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from gnewton.errors import first_line
from gnewton.registry import Registry
from gnewton.runfiles import METRICS_COLUMNS

__all__ = ["LOGGERS", "GuardedLoggers", "Logger", "LoggerRecipe", "RunCard"]


@dataclass(frozen=True)
class RunCard:
    """A run as described to a logger when it starts.

    Attributes:
        folder: the run folder; its name is the name of the run.
        experiment: the option ``name``.
        config: all options by dotted name.
        step: training steps done before a run is continued; 0 for a new one.
        trains: whether the run begins or goes on; else something is added to it as it is.
    """

    folder: Path
    experiment: str
    config: Mapping[str, Any]
    step: int
    trains: bool = True


class Logger(ABC):
    """Receives the rows that a run writes to its CSV files, in the same order, and plots of it.

    Its methods may raise.
    """

    @abstractmethod
    def start(self, card: RunCard) -> None:
        """A run begins or is continued, or gets an addition (``card.trains``)."""

    @abstractmethod
    def metrics(self, row: Mapping[str, Any]) -> None:
        """A row of metrics.csv, with None for empty cells."""

    @abstractmethod
    def steps(self, row: Mapping[str, Any]) -> None:
        """A row of steps.csv."""

    @abstractmethod
    def rates(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Rows of rates.csv."""

    @abstractmethod
    def image(self, name: str, file: Path, step: int) -> None:
        """A plot that shows the run at a step: a PNG file, which may be gone after the call."""

    @abstractmethod
    def finish(self, ended_well: bool) -> None:
        """The run has ended: as requested, or by an error or a signal."""


@dataclass(kw_only=True)
class LoggerRecipe(ABC):
    """Options of one logger. ``name`` is the choice ``logger=name``.

    Attributes:
        package: the package it needs.
        extra: the extra of gnewton that installs the package.
    """

    package: ClassVar[str]
    extra: ClassVar[str]

    name: str

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """The package must be installed."""
        spec = importlib.util.find_spec(self.package)
        if spec is None or spec.origin is None:  # a plain folder of that name is no package
            yield "name", f"needs the package {self.package}: pip install 'gnewton[{self.extra}]'"

    @abstractmethod
    def build(self) -> Logger:
        """Build the logger; it connects to its service in :meth:`Logger.start`."""


log = logging.getLogger("gnewton")

LOGGERS = Registry("logger", "gnewton.loggers", LoggerRecipe)  # type: ignore[type-abstract]


def numbers(row: Mapping[str, Any], columns: Sequence[str]) -> dict[str, float]:
    """The values of ``columns`` in a row, without empty cells."""
    return {name: float(row[name]) for name in columns if row.get(name) is not None}


METRICS = tuple(
    name
    for name in METRICS_COLUMNS
    if name not in ("step", "evaluation_seconds", "logging_seconds", "checkpoint_seconds")
)
"""Columns of metrics.csv that are reported if they have a value."""


def step_numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """The mean training loss and the learning rate of a row of steps.csv, as ``step/…``."""
    return {f"step/{name}": float(row[name]) for name in ("loss", "lr")}


def rate_numbers(rows: Sequence[Mapping[str, Any]]) -> dict[int, dict[str, float]]:
    """By step: the rate of each group as ``rate/GROUP``, and ``fallback`` of the update (0 or 1)."""
    by_step: dict[int, dict[str, float]] = {}
    for row in rows:
        values = by_step.setdefault(int(row["step"]), {})
        values[f"rate/{row['group']}"] = float(row["rate"])
        values["fallback"] = float(row["fallback"])
    return by_step


class GuardedLoggers(Logger):
    """Forwards every call to its loggers. A logger that raises is reported once and dropped.

    Args:
        loggers: by name.
    """

    def __init__(self, loggers: Mapping[str, Logger]) -> None:
        self._loggers = dict(loggers)

    def __bool__(self) -> bool:
        """Whether there is a logger that has not failed."""
        return bool(self._loggers)

    def start(self, card: RunCard) -> None:
        """See :meth:`Logger.start`."""
        self._forward(lambda logger: logger.start(card))

    def metrics(self, row: Mapping[str, Any]) -> None:
        """See :meth:`Logger.metrics`."""
        self._forward(lambda logger: logger.metrics(row))

    def steps(self, row: Mapping[str, Any]) -> None:
        """See :meth:`Logger.steps`."""
        self._forward(lambda logger: logger.steps(row))

    def rates(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """See :meth:`Logger.rates`."""
        self._forward(lambda logger: logger.rates(rows))

    def image(self, name: str, file: Path, step: int) -> None:
        """See :meth:`Logger.image`."""
        self._forward(lambda logger: logger.image(name, file, step))

    def finish(self, ended_well: bool) -> None:
        """See :meth:`Logger.finish`."""
        self._forward(lambda logger: logger.finish(ended_well))

    @contextmanager
    def reporting(self, card: RunCard) -> Iterator[None]:
        """Start before the block and finish after it, also if it raises."""
        self.start(card)
        try:
            yield
        except BaseException:
            self.finish(ended_well=False)
            raise
        self.finish(ended_well=True)

    def _forward(self, call: Callable[[Logger], None]) -> None:
        for name, logger in list(self._loggers.items()):
            try:
                call(logger)
            except Exception as error:  # noqa: PERF203 - a service that is down must not end a run
                del self._loggers[name]
                log.warning("logger %s failed and is left out from here on: %s", name, first_line(error))
