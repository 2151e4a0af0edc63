"""Run folders as they lie on the disk: found below any folder, read without torch or Hydra."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from gnewton.errors import InputError, first_line
from gnewton.report.files import read_csv, read_json
from gnewton.report.rates import Rates, read_rates
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
