"""A job of a sweep: one run, and how it ended."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gnewton.runfiles import DIVERGED, DONE

FINAL = (DONE, DIVERGED)
"""These are not run again: a diverged run would diverge again."""


@dataclass(frozen=True)
class Job:
    """One run to be made.

    Attributes:
        digest: the hash of its configuration, see :func:`gnewton.experiment.folder.config_hash`.
        overrides: the overrides of ``gnewton train`` it is made by.
    """

    digest: str
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Ended:
    """How a job ended, or that it did not.

    Attributes:
        digest: of the job.
        status: ``DONE``, ``PENDING``, ``INTERRUPTED``, ``DIVERGED`` or ``FAILED``, see
            :mod:`gnewton.runfiles`.
        attempts: how often it was started.
        exit_code: of the last attempt, negative for a signal; None if there was no attempt.
        seconds: how long the attempts took.
        folder: the run folder, or None if there is none.
        error: of a bad end, the last line of what was said about it.
        value: of a good one, what it came to.
    """

    digest: str
    status: str
    attempts: int = 0
    exit_code: int | None = None
    seconds: float = 0.0
    folder: Path | None = None
    error: str = ""
    value: str = ""
