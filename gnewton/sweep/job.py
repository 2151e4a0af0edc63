"""A job of a sweep: one run, and its end as recorded in the files of the run."""

from __future__ import annotations

import json
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gnewton.runfiles import DIVERGED, DONE, ENDED, FAILED, INTERRUPTED, RESULT_FILE

FINAL = (DONE, DIVERGED)
"""Statuses of jobs that are not run again. A run that diverged would diverge again."""

_TAIL = 16384
"""Bytes at the end of a log that are searched for its last line."""


@dataclass(frozen=True)
class Job:
    """One run of a sweep.

    Attributes:
        digest: hash of its configuration, see :func:`gnewton.experiment.folder.config_hash`.
        overrides: the overrides of ``gnewton train`` that make the run.
    """

    digest: str
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class JobEnd:
    """The state of a job after its last attempt.

    Attributes:
        digest: of the job.
        status: ``DONE``, ``PENDING``, ``INTERRUPTED``, ``DIVERGED`` or ``FAILED`` of :mod:`gnewton.runfiles`.
        attempts: number of times the job was started.
        exit_code: of the last attempt, negative for a signal; None if there was no attempt.
        seconds: wall time of all attempts.
        folder: the run folder; None if there is none.
        error: one line about a failure; empty otherwise.
        value: the final metric in words, of a job that ended well; empty otherwise.
    """

    digest: str
    status: str
    attempts: int = 0
    exit_code: int | None = None
    seconds: float = 0.0
    folder: Path | None = None
    error: str = ""
    value: str = ""


def find_run(folder: Path) -> Path | None:
    """The latest run folder below the folder of a job; None if no run got as far as its configuration."""
    runs = [path.parent for path in folder.glob("*/*/config.yaml")]
    return max(runs, key=lambda run: run.name, default=None)


def read_job_end(
    digest: str,
    run: Path | None,
    *,
    attempts: int = 0,
    exit_code: int | None = None,
    seconds: float = 0.0,
    line: str = "",
    stopped: bool = False,
) -> JobEnd:
    """The state of a job, from the result of its run, its exit code and the stop request.

    Only a status in ``result.json`` counts as the end of a run: a process that exits with code 0 without one
    has failed.

    Args:
        digest: of the job.
        run: its run folder.
        attempts, exit_code, seconds: of its process; without an exit code only the files are judged.
        line: the last line of its log.
        stopped: whether the sweep was asked to stop.
    """
    result = _result(run)
    recorded = str(result.get("status"))
    status, error = FAILED, ""
    if recorded in ENDED:
        status = DONE
    elif recorded == DIVERGED:
        status, error = DIVERGED, str(result.get("message", DIVERGED)).partition("\n")[0]
    elif stopped:
        status = INTERRUPTED
    else:
        error = _describe_failure(exit_code, line)
    return JobEnd(digest, status, attempts, exit_code, seconds, run, error, _metric_in_words(result))


def last_line(path: Path, offset: int = 0) -> str:
    """The last line that is not blank, after ``offset`` bytes of a file; empty if there is none."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(offset, size - _TAIL))
            lines = file.read().decode(errors="replace").split("\n")
    except OSError:
        return ""
    # a progress bar overwrites its line after "\r": only its last state counts
    texts = [line.rstrip("\r").rpartition("\r")[2].strip() for line in lines]
    return next((text for text in reversed(texts) if text), "")


def signal_name(number: int) -> str:
    """The name of a signal, such as SIGKILL."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _describe_failure(exit_code: int | None, line: str) -> str:
    if exit_code is None:
        return "not ended"
    if exit_code < 0:
        return f"killed by {signal_name(-exit_code)}"
    tail = f"; last line: {line}" if line else ""
    if exit_code == 0:
        return f"exit code 0 before the end of the run{tail}"
    return f"exit code {exit_code}{tail}"


def _result(run: Path | None) -> dict[str, Any]:
    """result.json of a run; empty if there is none, or it cannot be read."""
    if run is None:
        return {}
    try:
        content = json.loads((run / RESULT_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _metric_in_words(result: dict[str, Any]) -> str:
    """The final value of the first metric that was measured, validation first."""
    metrics = result.get("metrics") or {}
    for name in ("validation_accuracy", "validation_loss", "train_loss"):
        if isinstance(metrics.get(name), (int, float)):
            return f"{name.replace('_', ' ')} {metrics[name]:.4g}"
    return ""
