"""Reading the files of a run, which may have been killed or may still be going on."""

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
    UNFINISHED,
)


def read_csv(
    path: Path, columns: Collection[str], needed: Collection[str], text: Collection[str] = ()
) -> pd.DataFrame:
    """The whole lines of a CSV file: a kill may have left a last one without its end.

    Args:
        path: the file. One without any whole line has no rows: a run that is just starting leaves it so.
        columns: what is read of it, where it is there; what is not text is a number or true and false.
        needed: of these, what has to be there, in every row.
        text: of these, what is text.

    Raises:
        InputError: if it cannot be read, lacks a column, or has a cell that is no number.
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
    if not isinstance(frame.index, pd.RangeIndex):  # pandas takes the surplus for row labels, and shifts all
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
    """A JSON object; empty where there is no such file.

    Raises:
        InputError: if it cannot be read or is no object.
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
        table: rate λ₁η by training step (rows) and group (columns, in the order of the partition), without
            the updates of the warm-up, in which nothing moves.
        clocks: one row per update: its step, and its ``summary_seconds`` and ``solve_seconds``.
    """

    table: pd.DataFrame = field(repr=False)
    clocks: pd.DataFrame = field(repr=False)


def read_rates(path: Path) -> Rates | None:
    """Read rates.csv; None where there is no such file or no row in it.

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
    """Rates by step and group, at each step the median over the runs that made an update there.

    Returns:
        None where no run has rates beyond its warm-up.
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
        folder: where it is.
        config: the resolved configuration, nested.
        environment: environment.json, empty if there is none.
        result: result.json, empty if there is none.
        metrics: metrics.csv, one row per evaluated epoch, perhaps none.
        rates: rates.csv; None for optimizers without, and for a run that made no update yet.
    """

    folder: Path
    config: dict[str, Any]
    environment: dict[str, Any]
    result: dict[str, Any]
    metrics: pd.DataFrame = field(repr=False)
    rates: Rates | None = field(default=None, repr=False)

    @property
    def status(self) -> str:
        """How the run ended; "unfinished" where result.json does not say."""
        return str(self.result.get("status", UNFINISHED))

    @property
    def seed(self) -> int:
        """The seed of the run."""
        return int(self.config.get("seed", 0))


def find_runs(roots: Iterable[Path]) -> tuple[list[Run], list[str]]:
    """Every run folder in or below ``roots``, each once, in the order of their paths.

    Returns:
        the runs, and a line for each folder that looks like one and cannot be read, or has lost its end.

    Raises:
        InputError: if a root is not there, or no run is.
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
    metrics = folder / METRICS_FILE
    return Run(
        folder,
        config,
        read_json(folder / ENVIRONMENT_FILE),
        read_json(folder / RESULT_FILE),
        read_csv(metrics, _READ, _NEEDED)
        if metrics.is_file()
        else pd.DataFrame(columns=_NEEDED, dtype=float),
        read_rates(folder / RATES_FILE),
    )


def require_end(run: Run) -> None:
    """Make sure that a run that ended as asked has the row of its end: files get lost where runs are copied.

    Raises:
        InputError: naming the file, if it has not.
    """
    step = run.result.get("step")
    if run.status not in ENDED or not isinstance(step, int):
        return
    path = run.folder / METRICS_FILE
    if run.metrics.empty:
        what = "has no row" if path.is_file() else "is not there"
        raise InputError(f"{path} {what}, although the run is {run.status}")
    last = run.metrics["step"].iloc[-1]
    if step > last:
        raise InputError(f"{path} ends at step {last:g}, although the run is {run.status} at step {step}")


def _candidates(root: Path) -> Iterator[Path]:
    """Folders with metrics, or with a configuration and what only a run writes beside it.

    A link to a folder is followed one level deep: a sweep may point at its runs.
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
