"""What the files of a job say about how it ended."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

from gnewton.runfiles import DIVERGED, DONE, ENDED, FAILED, INTERRUPTED, RESULT_FILE
from gnewton.sweep.job import Ended

_TAIL = 16384
"""Bytes of a log in which the last line is looked for."""


def find_run(folder: Path) -> Path | None:
    """The run folder that a job left in its own, or None. One without a configuration was never begun."""
    runs = [path.parent for path in folder.glob("*/*/config.yaml")]
    return max(runs, key=lambda run: run.name, default=None)


def read_outcome(
    digest: str,
    run: Path | None,
    *,
    attempts: int = 0,
    exit_code: int | None = None,
    seconds: float = 0.0,
    line: str = "",
    stopped: bool = False,
) -> Ended:
    """How a job ended, by the result of its run, the exit code, and whether it was asked to stop.

    Only what the run itself noted as its end counts as one: a process that exits with code 0 before that has
    failed.

    Args:
        digest: of the job.
        run: its run folder.
        attempts, exit_code, seconds: of its process; without an exit code only the files are judged.
        line: the last line of its log.
        stopped: whether it was asked to stop.
    """
    result = _result(run)
    noted = str(result.get("status"))
    status, error = FAILED, ""
    if noted in ENDED:
        status = DONE
    elif noted == DIVERGED:
        status, error = DIVERGED, str(result.get("message", DIVERGED)).partition("\n")[0]
    elif stopped:
        status = INTERRUPTED
    else:
        error = _describe(exit_code, line)
    return Ended(digest, status, attempts, exit_code, seconds, run, error, _value(result))


def last_line(path: Path, offset: int = 0) -> str:
    """The last line with something in it after ``offset`` bytes of a file; empty if there is none."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(offset, size - _TAIL))
            lines = file.read().decode(errors="replace").split("\n")
    except OSError:
        return ""
    # of a progress bar only what stands there in the end
    texts = [line.rstrip("\r").rpartition("\r")[2].strip() for line in lines]
    return next((text for text in reversed(texts) if text), "")


def signal_name(number: int) -> str:
    """Such as SIGKILL."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _describe(exit_code: int | None, line: str) -> str:
    if exit_code is None:
        return "not ended"
    if exit_code < 0:
        return f"killed by {signal_name(-exit_code)}"
    said = f"; last line: {line}" if line else ""
    if exit_code == 0:
        return f"exit code 0 before the end of the run{said}"
    return f"exit code {exit_code}{said}"


def _result(run: Path | None) -> dict[str, Any]:
    try:
        found = json.loads(((run or Path()) / RESULT_FILE).read_text(encoding="utf-8")) if run else {}
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _value(result: dict[str, Any]) -> str:
    """The metric that settings are compared by, in words."""
    metrics = result.get("metrics") or {}
    for name in ("validation_accuracy", "validation_loss", "train_loss"):
        if isinstance(metrics.get(name), (int, float)):
            return f"{name.replace('_', ' ')} {metrics[name]:.4g}"
    return ""
