"""Run one job to its end: what every launcher has its workers do.

The run is a process of its own, so that nothing that happens in it reaches the worker or another job. Who
runs a job holds its folder, and the process inherits the hold: where a sweep was killed and its jobs go on,
whoever takes up the sweep waits for them and never runs a job twice at once.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from gnewton.experiment.folder import try_hold
from gnewton.options import quoted
from gnewton.runfiles import FAILED, PENDING
from gnewton.sweep.job import FINAL, Ended, Job
from gnewton.sweep.outcome import find_run, last_line, read_outcome
from gnewton.sweep.stop import Stop

INTERVAL = 0.2
"""Seconds between two looks at whether a job has ended, is free, or shall stop."""

LOG = "output.log"

BAD_INPUT = 2
"""The exit code of ``gnewton train`` that says that another attempt would end the same way."""


@dataclass(frozen=True)
class Slot:
    """A place for one job at a time.

    Attributes:
        path: the file that the job in it holds.
        gpu: the value of CUDA_VISIBLE_DEVICES there; None leaves it as it is.
    """

    path: Path
    gpu: str | None = None


@dataclass(frozen=True)
class Task:
    """A job, and how it is to be run; plain values, so that it can be sent to another process or machine.

    Attributes:
        job: what to run.
        folder: the folder of the job, absolute; it must exist.
        directory: the working directory.
        stop: how it is told to stop.
        retries: how often a failed run is continued.
        flags: of ``gnewton train``, beside the overrides.
        slots: of these it takes the first that is free; none: it starts at once.
        environment: variables of the process, beside those of the worker.
    """

    job: Job
    folder: Path
    directory: Path
    stop: Stop
    retries: int = 0
    flags: tuple[str, ...] = ()
    slots: tuple[Slot, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)


def run_task(task: Task) -> Ended:
    """Run the job, continue it after a failure as often as asked, and say how it ended.

    A job that was run before is continued from its checkpoint, and one that has ended is left alone. Once
    the sweep is asked to stop, a job that has not started is pending and one under way is interrupted.
    """
    with _held((task.folder,), task.stop) as lock:
        if lock is None:
            return Ended(task.job.digest, PENDING)
        before = read_outcome(task.job.digest, find_run(task.folder))
        if before.status in FINAL:
            return before
        places = tuple(slot.path for slot in task.slots)
        with _held(places, task.stop) as place:
            if task.stop.requested:
                return Ended(task.job.digest, PENDING)
            return _attempts(task, [lock] if place is None else [lock, place], _environment(task, place))


def _attempts(task: Task, descriptors: Sequence[int], environment: dict[str, str]) -> Ended:
    started = time.monotonic()
    attempts = 0
    while True:
        attempts += 1
        offset = (task.folder / LOG).stat().st_size if (task.folder / LOG).exists() else 0
        code = _run_process(task, descriptors, environment)
        ended = read_outcome(
            task.job.digest,
            find_run(task.folder),
            attempts=attempts,
            exit_code=code,
            seconds=time.monotonic() - started,
            line=last_line(task.folder / LOG, offset),
            stopped=task.stop.requested,
        )
        if ended.status != FAILED or code == BAD_INPUT or attempts > task.retries:
            return ended


def _run_process(task: Task, descriptors: Sequence[int], environment: dict[str, str]) -> int:
    run = find_run(task.folder)
    if run is None:
        overrides = [*task.job.overrides, f"output_root={quoted(str(task.folder))}"]
    else:
        overrides = [f"resume={quoted(str(run))}"]
    with (task.folder / LOG).open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "gnewton", "train", *task.flags, *overrides],
            cwd=task.directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # the terminal's signals go to the sweep alone
            pass_fds=descriptors,
        )
    asked = False
    while True:
        try:
            return process.wait(INTERVAL)
        except subprocess.TimeoutExpired:  # noqa: PERF203
            if task.stop.requested and not asked:
                process.send_signal(signal.SIGTERM)
                asked = True
            elif asked and task.stop.kills:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)


def _environment(task: Task, place: int | None) -> dict[str, str]:
    found = {**os.environ, **task.environment}
    for slot in task.slots:
        if place is not None and slot.gpu is not None and os.path.samestat(os.fstat(place), slot.path.stat()):
            found["CUDA_VISIBLE_DEVICES"] = slot.gpu
    return found


@contextmanager
def _held(paths: Sequence[Path], stop: Stop) -> Iterator[int | None]:
    """Hold the first of ``paths`` that is free, waiting for it; None if asked to stop, or of no paths."""
    descriptor = None
    while paths and not stop.requested:
        descriptor = next((found for path in paths if (found := try_hold(path)) is not None), None)
        if descriptor is not None:
            break
        time.sleep(INTERVAL)
    try:
        yield descriptor
    finally:
        if descriptor is not None:
            os.close(descriptor)
