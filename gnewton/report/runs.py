"""Run folders, found and read without torch or Hydra. A run may have been killed, or may still be running."""

from __future__ import annotations

import io
import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from gnewton.errors import InputError, first_line
from gnewton.runfiles import (
    CONFIG_FILE,
    ENDED,
    ENVIRONMENT_FILE,
    METRICS_FILE,
    RATES_FILE,
    RESULT_FILE,
    SCORES,
    STEPS_COLUMNS,
    STEPS_FILE,
    UNFINISHED,
)


def read_csv(
    path: Path, columns: Collection[str], needed: Collection[str], text: Collection[str] = ()
) -> pd.DataFrame:
    """Read the complete lines of a CSV file; a killed run may have left an incomplete last line.

    Args:
        path: the file. It has no rows if a run is just starting.
        columns: the columns to read if they exist; those not in ``text`` hold numbers or true and false.
        needed: columns that must exist and have no empty cell.
        text: columns that hold text.

    Raises:
        InputError: if the file cannot be read, lacks a column, or has a cell of another type.
    """
    try:
        content = path.read_text(encoding="utf-8")
        content = content[: content.rfind("\n") + 1]
        if not content:
            return pd.DataFrame(columns=list(needed), dtype=float)
        frame = pd.read_csv(
            io.StringIO(content),
            usecols=lambda name: name in columns,
            dtype=dict.fromkeys(text, "category"),
            keep_default_na=False,  # a group may be called "null"
            na_values={name: ["", "nan"] for name in columns if name not in text},
        )
    except (OSError, ValueError) as error:  # pandas' errors and broken UTF-8 are ValueErrors
        raise InputError(f"{path}: cannot be read ({first_line(error)})") from error
    if not isinstance(frame.index, pd.RangeIndex):  # pandas took surplus cells as row labels
        raise InputError(f"{path}: cannot be read (rows have more cells than the header)")
    missing = [name for name in needed if name not in frame]
    if missing:
        raise InputError(f"{path}: lacks the columns {', '.join(missing)}")
    if frame.empty:
        return frame.astype(float)
    for name in frame:
        if name not in text and not pd.api.types.is_numeric_dtype(frame[name]):
            raise InputError(f"{path}: the column {name} holds something that is no number")
        if name in needed and frame[name].isna().any():
            raise InputError(f"{path}: the column {name} has empty cells")
    return frame


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; empty if there is no such file.

    Raises:
        InputError: if the file cannot be read or holds no object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({first_line(error)})") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds no JSON object")
    return content


_CLOCKS = ("summary_seconds", "solve_seconds")


@dataclass(frozen=True)
class Rates:
    """The learning rates of a run.

    Attributes:
        table: λ₁η by training step (rows) and group (columns, in the order of the partition), without the
            updates of the warm-up.
        clocks: ``step``, ``summary_seconds`` and ``solve_seconds`` of each update.
    """

    table: pd.DataFrame = field(repr=False)
    clocks: pd.DataFrame = field(repr=False)


def read_rates(path: Path) -> Rates | None:
    """Read rates.csv; None if there is no such file or it has no row.

    Raises:
        InputError: if it cannot be read.
    """
    if not path.is_file():
        return None
    rows = read_csv(
        path,
        ("update", "step", "group", "rate", "warmup", *_CLOCKS),
        ("update", "step", "group"),
        text=("group",),
    )
    if rows.empty:
        return None
    if "rate" not in rows:
        raise InputError(f"{path}: lacks the column rate")
    groups = list(dict.fromkeys(rows["group"]))
    clocks = rows[["step", *(name for name in _CLOCKS if name in rows)]][~rows["update"].duplicated()]
    if "warmup" in rows:
        rows = rows[~rows["warmup"].astype(bool)]
    index, where = np.unique(rows["step"].to_numpy(), return_inverse=True)
    values = np.full((len(index), len(groups)), np.nan)
    values[where, rows["group"].cat.reorder_categories(groups).cat.codes] = rows["rate"].to_numpy(dtype=float)
    return Rates(pd.DataFrame(values, index=index, columns=groups), clocks.reset_index(drop=True))


def median_rates(members: Sequence[Rates]) -> pd.DataFrame | None:
    """Rates by step and group; at each step, the median over the runs with an update there.

    Returns:
        None if no run has rates after its warm-up.
    """
    tables = [member.table for member in members if len(member.table)]
    if not tables:
        return None
    stacked = pd.concat(tables)
    return stacked.groupby(level=0).median()[list(tables[0].columns)]


_NEEDED = ["epoch", "step", "train_seconds"]
_READ = (*_NEEDED, *SCORES, "peak_memory_mib")


@dataclass(frozen=True)
class Run:
    """One run folder.

    Attributes:
        folder: its path.
        config: the resolved configuration, nested.
        environment: environment.json, empty if there is none.
        result: result.json, empty if there is none.
        metrics: metrics.csv: a row before the first step (older runs have none), one per evaluated epoch.
        rates: rates.csv; None for optimizers without rates and for runs without an update.
        steps: steps.csv, one row per logging period; empty for runs that wrote none.
    """

    folder: Path
    config: dict[str, Any]
    environment: dict[str, Any]
    result: dict[str, Any]
    metrics: pd.DataFrame = field(repr=False)
    rates: Rates | None = field(default=None, repr=False)
    steps: pd.DataFrame = field(
        default_factory=lambda: pd.DataFrame(columns=STEPS_COLUMNS, dtype=float), repr=False
    )

    @property
    def status(self) -> str:
        """The status in result.json; "unfinished" if there is none."""
        return str(self.result.get("status", UNFINISHED))

    @property
    def trained(self) -> pd.DataFrame:
        """The rows of metrics.csv after the first training step."""
        return self.metrics[self.metrics["step"] > 0]

    @property
    def seed(self) -> int:
        """The seed of the run."""
        return int(self.config.get("seed", 0))


def find_runs(roots: Iterable[Path]) -> tuple[list[Run], list[str]]:
    """Read every run folder in or below ``roots``, each once, in the order of their paths.

    Returns:
        the runs, and a line for each run folder that cannot be read or has lost its end.

    Raises:
        InputError: if a root does not exist, or there is no run.
    """
    roots = list(roots)
    folders: dict[Path, None] = {}
    for root in roots:
        if not root.is_dir():
            raise InputError(f"{root}: no such folder")
        folders |= dict.fromkeys(folder.resolve() for folder in sorted(_candidates(root)))
    runs, problems = [], []
    for folder in folders:
        try:
            run = read_run(folder)
            require_end(run)
            runs.append(run)
        except InputError as error:  # noqa: PERF203
            problems.append(f"left out: {error}")
    if not runs:
        where = ", ".join(map(str, roots))
        raise InputError("\n".join([f"{where}: there is no run folder in it or below", *problems]))
    return runs, problems


def read_run(folder: Path) -> Run:
    """Read one run folder.

    Raises:
        InputError: if one of its files cannot be read.
    """
    try:
        config = yaml.safe_load((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{folder}: config.yaml cannot be read ({first_line(error)})") from error
    if not isinstance(config, dict):
        raise InputError(f"{folder}: config.yaml holds no options")
    if not isinstance(config.get("seed", 0), int):
        raise InputError(f"{folder}: config.yaml: seed={config['seed']} is no whole number")
    metrics, steps = folder / METRICS_FILE, folder / STEPS_FILE
    return Run(
        folder,
        config,
        read_json(folder / ENVIRONMENT_FILE),
        read_json(folder / RESULT_FILE),
        read_csv(metrics, _READ, _NEEDED)
        if metrics.is_file()
        else pd.DataFrame(columns=_NEEDED, dtype=float),
        read_rates(folder / RATES_FILE),
        read_csv(steps, STEPS_COLUMNS, STEPS_COLUMNS)
        if steps.is_file()
        else pd.DataFrame(columns=STEPS_COLUMNS, dtype=float),
    )


def require_end(run: Run) -> None:
    """Check that a run that ended as configured has its last row: files get lost when runs are copied.

    Raises:
        InputError: naming the file, if the row is missing.
    """
    step = run.result.get("step")
    if run.status not in ENDED or not isinstance(step, int):
        return
    path = run.folder / METRICS_FILE
    if run.metrics.empty:
        state = "has no row" if path.is_file() else "is not there"
        raise InputError(f"{path} {state}, although the run is {run.status}")
    last = run.metrics["step"].iloc[-1]
    if step > last:
        raise InputError(f"{path} ends at step {last:g}, although the run is {run.status} at step {step}")


def _candidates(root: Path) -> Iterator[Path]:
    """Folders with metrics, or with a configuration and a file that only a run writes.

    Symbolic links to folders are followed one level deep, since a sweep may link to its runs.
    """
    for path in root.rglob("*"):
        if path.is_symlink() and path.is_dir() and _is_run(path):
            yield path
        if path.name in (METRICS_FILE, CONFIG_FILE) and _is_run(path.parent):
            yield path.parent
    if _is_run(root):
        yield root


def _is_run(folder: Path) -> bool:
    if (folder / METRICS_FILE).is_file():
        return True
    return (folder / CONFIG_FILE).is_file() and (
        (folder / ENVIRONMENT_FILE).is_file() or (folder / RESULT_FILE).is_file()
    )
