"""manifest.csv: the jobs of a sweep, how they ended and their states, always complete on the disk."""

from __future__ import annotations

import csv
import io
import json
import shlex
import signal
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gnewton.errors import InputError
from gnewton.experiment.folder import write_text
from gnewton.runfiles import DIVERGED, DONE, ENDED, FAILED, INTERRUPTED, PENDING, RESULT_FILE

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


NAME = "manifest.csv"

LONGEST = 60
"""Characters of an override in a message; manifest.csv has it whole."""

COLUMNS = ("job", "hash", "status", "attempts", "exit_code", "seconds", "run", "error", "overrides")
"""``run`` is the run folder, relative to the folder of the sweep; ``overrides`` are quoted as for a shell."""


@dataclass(frozen=True)
class Entry:
    """One line of the manifest: a job, its number from 1, and its state."""

    number: int
    job: Job
    end: JobEnd


class Manifest:
    """The jobs of a sweep by the hash of their configuration, with their states.

    Args:
        folder: of the sweep.
        entries: in the order of their numbers.
    """

    def __init__(self, folder: Path, entries: Iterable[Entry] = ()) -> None:
        self.folder = folder
        self._entries = {entry.job.digest: entry for entry in entries}

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Read the manifest in ``folder``.

        Raises:
            InputError: if there is none, or it is not of the form that :meth:`save` writes.
        """
        path = folder / NAME
        try:
            with path.open(encoding="utf-8", newline="") as file:
                return cls(folder, [_entry(row, folder) for row in csv.DictReader(file)])
        except FileNotFoundError:
            raise InputError(f"{folder}: no sweep there, it holds no {NAME}") from None
        except (OSError, KeyError, TypeError, ValueError) as error:
            reason = f"{type(error).__name__}: {error}".partition("\n")[0]
            raise InputError(f"{path}: cannot be read ({reason})") from error

    def add(self, jobs: Iterable[Job]) -> None:
        """Add jobs, except those whose configuration is in the manifest already."""
        for job in jobs:
            number = len(self._entries) + 1
            self._entries.setdefault(job.digest, Entry(number, job, JobEnd(job.digest, PENDING)))
        self.save()

    def put(self, jobs: Iterable[Job]) -> None:
        """Put other overrides of the same configurations in the place of these jobs."""
        for job in jobs:
            self._entries[job.digest] = replace(self._entries[job.digest], job=job)
        self.save()

    def record(self, end: JobEnd) -> Entry:
        """Store the state of a job; attempts and seconds add up over invocations of the sweep."""
        entry = self._entries[end.digest]
        total = replace(
            end, attempts=entry.end.attempts + end.attempts, seconds=entry.end.seconds + end.seconds
        )
        if end.status == PENDING and entry.end.status != PENDING:  # the job was not started this time
            total = entry.end
        self._entries[end.digest] = replace(entry, end=total)
        self.save()
        return self._entries[end.digest]

    def save(self) -> None:
        """Write the manifest; a crash leaves either the old file or the new one."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(_row(entry, self.folder) for entry in self.entries)
        write_text(self.folder / NAME, text.getvalue())

    @property
    def entries(self) -> list[Entry]:
        """The entries in the order of their numbers."""
        return list(self._entries.values())

    def title(self, entry: Entry) -> str:
        """The number of a job and the overrides in which it differs from the others, long ones cut short."""
        common = set.intersection(*(set(other.job.overrides) for other in self.entries))
        specific = [text for text in entry.job.overrides if text not in common]
        shown = [
            text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
            for text in specific or entry.job.overrides
        ]
        return f"job {entry.number}  {shlex.join(shown)}"

    def of(self, job: Job) -> Entry:
        """The entry of a job."""
        return self._entries[job.digest]

    def open_entries(self) -> list[Entry]:
        """The entries of jobs that are still to be run."""
        return [entry for entry in self.entries if entry.end.status not in FINAL]

    def counts(self) -> Counter[str]:
        """Number of jobs by status."""
        return Counter(entry.end.status for entry in self.entries)


def _row(entry: Entry, folder: Path) -> list[object]:
    end = entry.end
    run = "" if end.folder is None else end.folder.relative_to(folder).as_posix()
    code = "" if end.exit_code is None else end.exit_code
    return [
        entry.number,
        entry.job.digest,
        end.status,
        end.attempts,
        code,
        f"{end.seconds:.1f}",
        run,
        end.error,
        shlex.join(entry.job.overrides),
    ]


def _entry(row: dict[str, str], folder: Path) -> Entry:
    job = Job(row["hash"], tuple(shlex.split(row["overrides"])))
    end = JobEnd(
        job.digest,
        row["status"],
        int(row["attempts"]),
        int(row["exit_code"]) if row["exit_code"] else None,
        float(row["seconds"]),
        folder / row["run"] if row["run"] else None,
        row["error"],
    )
    return Entry(int(row["job"]), job, end)
