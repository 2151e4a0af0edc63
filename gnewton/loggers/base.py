"""The registry of loggers, and what each of them must offer."""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from gnewton.registry import Registry
from gnewton.runfiles import METRICS_COLUMNS


@dataclass(frozen=True)
class RunCard:
    """What a logger is told of a run.

    Attributes:
        folder: the run folder; its name is that of the run.
        experiment: the option ``name``.
        config: every option by its dotted name.
        step: training steps made before, when a run is continued; 0 for a new one.
    """

    folder: Path
    experiment: str
    config: Mapping[str, Any]
    step: int


class Logger(ABC):
    """Receives what a run writes into its CSV files, in the same order. It may raise."""

    @abstractmethod
    def start(self, card: RunCard) -> None:
        """A run begins, or goes on."""

    @abstractmethod
    def metrics(self, row: Mapping[str, Any]) -> None:
        """A row of metrics.csv; None where there is no value."""

    @abstractmethod
    def rates(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Rows of rates.csv."""

    @abstractmethod
    def finish(self, ended_well: bool) -> None:
        """The run has ended: as asked, or in an error or by a signal."""


@dataclass(kw_only=True)
class LoggerRecipe(ABC):
    """Options of one logger. ``name`` is the choice ``logger=name``.

    Attributes:
        package: what has to be importable.
        extra: the extra of gnewton that installs it.
    """

    package: ClassVar[str]
    extra: ClassVar[str]

    name: str

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """A package that is not installed."""
        found = importlib.util.find_spec(self.package)
        if found is None or found.origin is None:  # a mere folder of that name is no package
            yield "name", f"needs the package {self.package}: pip install 'gnewton[{self.extra}]'"

    @abstractmethod
    def build(self) -> Logger:
        """A logger that has not started."""


LOGGERS = Registry("logger", "gnewton.loggers", LoggerRecipe)  # type: ignore[type-abstract]


def numbers(row: Mapping[str, Any], columns: Sequence[str]) -> dict[str, float]:
    """The columns of a row that have a value."""
    return {name: float(row[name]) for name in columns if row.get(name) is not None}


METRICS = tuple(
    name
    for name in METRICS_COLUMNS
    if name not in ("step", "evaluation_seconds", "logging_seconds", "checkpoint_seconds")
)
"""Columns of metrics.csv that are reported, where they have a value."""


def rate_numbers(rows: Sequence[Mapping[str, Any]]) -> dict[int, dict[str, float]]:
    """By step: the rate of each group, called ``rate/GROUP``, and ``fallback`` of the update (0 or 1)."""
    found: dict[int, dict[str, float]] = {}
    for row in rows:
        values = found.setdefault(int(row["step"]), {})
        values[f"rate/{row['group']}"] = float(row["rate"])
        values["fallback"] = float(row["fallback"])
    return found
