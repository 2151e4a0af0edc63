"""What a run writes and shows while it trains: its CSV files, its checkpoints, a progress bar or lines."""

from __future__ import annotations

import logging
import math
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from gnewton.errors import InputError
from gnewton.loggers import Logger
from gnewton.optim.rate_rule import INVALID
from gnewton.runfiles import (
    CHECKPOINT_FOLDER,
    LAST,
    METRICS_COLUMNS,
    METRICS_FILE,
    PREVIOUS,
    RATES_COLUMNS,
    RATES_FILE,
    STEPS_COLUMNS,
    STEPS_FILE,
)
from gnewton.training.checkpoint import remove_leftovers, save_checkpoint
from gnewton.training.csvlog import CsvLog, check_log

if TYPE_CHECKING:
    from gnewton.optim.rate_rule import RateUpdate


class RunLog:
    """metrics.csv, steps.csv, rates.csv and checkpoint/ of a run folder, open within the block.

    Args:
        folder: the run folder; None: this process writes nothing, as all but one of a data-parallel run.
        rate_log: collects the updates of the rates; None for optimizers without rates.
        logger: receives every row as well.
    """

    def __init__(self, folder: Path | None, rate_log: RateLog | None, logger: Logger | None = None) -> None:
        self._folder = folder
        self._rate_log = rate_log
        self._logger = logger
        self._columns: dict[str, tuple[str, ...]] = {METRICS_FILE: METRICS_COLUMNS, STEPS_FILE: STEPS_COLUMNS}
        if rate_log is not None:
            self._columns[RATES_FILE] = RATES_COLUMNS
        self._open = ExitStack()
        self._logs: dict[str, CsvLog] = {}
        self._lengths: Mapping[str, int] = {}

    def __enter__(self) -> RunLog:
        if self._folder is not None:
            (self._folder / CHECKPOINT_FOLDER).mkdir(exist_ok=True)
            remove_leftovers(self._folder / CHECKPOINT_FOLDER)
            for name, columns in self._columns.items():
                self._logs[name] = self._open.enter_context(CsvLog(self._folder / name, columns))
            if self._lengths:
                self.rewind(self._lengths)
            else:  # a new run, or one that was killed before its first checkpoint
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

    def steps(self, row: Mapping[str, Any] | None) -> None:
        """Append a row to steps.csv, if there is one."""
        if row is None:
            return
        self._write(STEPS_FILE, [row])
        if self._logger is not None:
            self._logger.steps(row)

    def rates(self) -> None:
        """Append the rows of all updates since the last call to rates.csv."""
        rows = self._rate_log.take() if self._rate_log is not None else []
        self._write(RATES_FILE, rows)
        if self._logger is not None and rows:
            self._logger.rates(rows)

    def lengths(self) -> dict[str, int]:
        """Sync the logs; returns the length of each in bytes, which a checkpoint records."""
        return {name: log.sync() for name, log in self._logs.items()}

    def rewind(self, lengths: Mapping[str, int]) -> None:
        """Remove the rows written after a checkpoint; before the block is entered, remove them on entry."""
        self._lengths = lengths
        for name, log in self._logs.items():
            log.cut(lengths[name])

    def check(self, lengths: Mapping[str, int]) -> None:
        """Check that the logs still hold the rows that a checkpoint records.

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
        """Write one checkpoint; the previous last.pt is kept as previous.pt."""
        if self._folder is not None:
            keep = self.checkpoint_path(PREVIOUS) if name == LAST else None
            save_checkpoint(self.checkpoint_path(name), state, keep)

    def checkpoint_path(self, name: str) -> Path:
        """The path of the checkpoint ``name``."""
        return (self._folder or Path()) / CHECKPOINT_FOLDER / name

    def _write(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        if name in self._logs and rows:
            self._logs[name].write(rows)


class RateLog:
    """Collects updates of the rates during training steps; their rows are written between steps.

    Attributes:
        updates: updates whose rows were taken so far.
    """

    def __init__(self) -> None:
        self._pending: list[RateUpdate] = []
        self.updates = 0

    @property
    def empty(self) -> bool:
        """Whether no update was made since the last :meth:`take`."""
        return not self._pending

    def record(self, update: RateUpdate) -> None:
        """Keep one update until the next :meth:`take`."""
        self._pending.append(update)

    def take(self) -> list[dict[str, object]]:
        """The rows of all updates since the last call, see ``RATES_COLUMNS``."""
        rows: list[dict[str, object]] = []
        for update in self._pending:
            self.updates += 1
            rows.extend(self._rows(update))
        self._pending.clear()
        return rows

    def invalid_step(self) -> int | None:
        """The step of the first update since :meth:`take` with numbers that are not finite, or None."""
        for update in self._pending:
            rates = update.solved.rates
            if update.solved.solution.status == INVALID or not all(map(math.isfinite, rates.tolist())):
                return update.step
        return None

    def rewind(self, updates: int) -> None:
        """Forget the updates since :meth:`take`, whose steps are undone, and count from ``updates``."""
        self._pending.clear()
        self.updates = updates

    def _rows(self, update: RateUpdate) -> list[dict[str, object]]:
        solved = update.solved
        columns = zip(
            update.names,
            solved.rates.tolist(),
            update.step_size,
            solved.gradient.tolist(),
            solved.curvature.tolist(),
            solved.third.tolist(),
            [False] * len(update.names) if solved.silent is None else solved.silent.tolist(),
            strict=True,
        )
        shared = {
            "update": self.updates,
            "step": update.step,
            "status": solved.solution.status,
            "fallback": solved.solution.fell_back,
            "warmup": update.warming_up,
            "capped": solved.capped,
            "rejected": update.rejected,
            "loss": _number(update.loss),
            "radius": _number(solved.solution.radius),
            "residual": _number(solved.solution.residual),
            "curvature_margin": _number(solved.solution.curvature_margin),
            "summary_seconds": update.summary_seconds,
            "solve_seconds": update.solve_seconds,
        }
        rows: list[dict[str, object]] = [
            {
                **shared,
                "group": group,
                "rate": 0.0 if update.warming_up else rate * step_size,
                "step_size": step_size,
                "gradient": _number(gradient),
                "curvature": _number(curvature),
                "third": _number(third),
                "silent": silent,
            }
            for group, rate, step_size, gradient, curvature, third, silent in columns
        ]
        return rows if len(rows) <= MOST_ROWS else _by_layer(rows)


MOST_ROWS = 256
"""Rows of an update in rates.csv; the groups of larger partitions are joined layer by layer."""

_SUMS = ("gradient", "curvature", "third")


def _by_layer(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    """One row for the groups of each layer, whose names agree up to the bracket or the number of the head.

    Rates are means, derivatives are sums over the groups, and ``silent`` is whether all of them are.
    """
    layers: dict[str, list[dict[str, object]]] = {}
    for row in rows:
        layers.setdefault(re.sub(r"(\[[\d:]+\]|\.head\d+)(?=$|:)", "", str(row["group"])), []).append(row)
    return [_joined(layer, members) for layer, members in layers.items()]


def _joined(layer: str, members: list[dict[str, object]]) -> dict[str, object]:
    def known(name: str) -> list[float]:
        return [value for row in members if isinstance(value := row[name], float)]

    sums = {name: math.fsum(known(name)) if known(name) else None for name in _SUMS}
    means = {name: math.fsum(known(name)) / len(members) for name in ("rate", "step_size")}
    return {**members[0], "group": layer, **means, **sums, "silent": all(row["silent"] for row in members)}


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


class ProgressBar:
    """A progress bar over training steps, or nothing if no terminal would show it.

    Args:
        style: "bar", "lines", or "auto": a bar if standard error is a terminal.
        total: training steps of the whole run; None if unknown.
        initial: training steps made before.
    """

    def __init__(self, style: str, total: int | None, initial: int = 0) -> None:
        shown = style == "bar" or (style == "auto" and sys.stderr.isatty())
        self._bar = tqdm(
            total=total, initial=initial, unit="step", disable=not shown, dynamic_ncols=True, leave=False
        )
        # the root logger prints the lines, if any: it shall print them above the bar, not through it
        self._redirect = logging_redirect_tqdm() if shown and logging.root.handlers else None

    def __enter__(self) -> ProgressBar:
        if self._redirect is not None:
            self._redirect.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
        if self._redirect is not None:
            self._redirect.__exit__(kind, error, trace)

    def advance(self) -> None:
        """Count one more training step; nothing is read from the device."""
        self._bar.update(1)

    def show(self, loss: float, rates: list[float]) -> None:
        """Show the latest loss and the range of the rates."""
        span = f"{min(rates):.2g}…{max(rates):.2g}" if len(rates) > 1 else f"{rates[0]:.2g}"
        self._bar.set_postfix_str(f"loss {loss:.4g}, rate {span}", refresh=False)


def learning_rates(optimizer: torch.optim.Optimizer) -> list[float]:
    """The rates in force: one per partition group, or one per parameter group of a baseline."""
    rates = getattr(optimizer, "rates", None)
    if isinstance(rates, Mapping):
        return list(rates.values())
    return [float(group["lr"]) for group in optimizer.param_groups]


def summary_line(row: Mapping[str, Any]) -> str:
    """A row of metrics.csv as one line of text."""
    parts = [f"epoch {row['epoch']:g}", f"step {row['step']}"]
    if row["running_loss"] is not None:
        parts.append(f"running loss {row['running_loss']:.4g}")
    for name in ("train", "validation", "test"):
        loss, accuracy = row[f"{name}_loss"], row[f"{name}_accuracy"]
        if loss is not None:
            parts.append(
                f"{name} {loss:.4g}" + (f" ({100 * accuracy:.2f} %)" if accuracy is not None else "")
            )
    parts.append(f"{row['train_seconds']:.2f} s")
    return ", ".join(parts)
