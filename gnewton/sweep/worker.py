"""Run one job to its end or to a request to stop: the function that every launcher calls on its workers.

The request is a file, so that jobs see it in any process and on any machine.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from gnewton.experiment.folder import try_hold
from gnewton.options import quoted
from gnewton.runfiles import FAILED, PENDING
from gnewton.sweep.manifest import FINAL, Job, JobEnd, find_run, last_line, read_job_end

_KILL = "kill"


@dataclass(frozen=True)
class StopRequest:
    """The file through which one invocation of a sweep asks its jobs to stop.

    Each invocation has a file of its own, so that a request to an earlier one has no effect.
    """

    path: Path

    @classmethod
    def of(cls, folder: Path) -> StopRequest:
        """A request, not yet made, to the jobs of the sweep in ``folder``."""
        return cls(folder / f".stop-{uuid.uuid4().hex}")

    def request(self, *, kill: bool = False) -> None:
        """Ask all jobs to finish their step, write a checkpoint and end; ``kill``: to end at once."""
        self.path.write_text(_KILL if kill else "stop", encoding="utf-8")

    @property
    def requested(self) -> bool:
        """Whether the jobs shall stop."""
        return self.path.exists()

    @property
    def kills(self) -> bool:
        """Whether the jobs shall stop without a checkpoint."""
        try:
            return self.path.read_text(encoding="utf-8") == _KILL
        except OSError:
            return False


class StopOnSignals:
    """Within the block, SIGINT, SIGTERM, SIGUSR1 and SIGHUP make the request; :attr:`received` is the first.

    A second SIGINT kills the jobs. A signal that was ignored before stays ignored, as under ``nohup``.
    """

    def __init__(self, stop: StopRequest) -> None:
        self.received: int | None = None
        self._stop = stop
        self._handlers: dict[int, object] = {}

    def __enter__(self) -> StopOnSignals:
        for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) != signal.SIG_IGN:
                self._handlers[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *reason: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._stop.path.unlink(missing_ok=True)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._stop.request(kill=self.received is not None and number == signal.SIGINT)
        self.received = self.received or number


@contextmanager
def without_interrupts() -> Iterator[None]:
    """Processes started within the block ignore SIGINT, which a terminal sends to the whole process group.

    The sweep receives the signal too and passes the request on through its file.
    """
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


INTERVAL = 0.2
"""Seconds between two polls of a process, a lock or the stop request."""

LOG = "output.log"

VISIBLE = "CUDA_VISIBLE_DEVICES"

BAD_INPUT = 2
"""Exit code of ``gnewton train`` for bad input: another attempt would end the same way."""


@dataclass(frozen=True)
class Slot:
    """A place for one job at a time.

    Attributes:
        path: the file that the job in this slot locks.
        gpu: value of ``VISIBLE`` for that job; None leaves the variable as it is.
    """

    path: Path
    gpu: str | None = None


def make_slots(folder: Path, count: int, gpus: Sequence[str] = ()) -> tuple[Slot, ...]:
    """The files of ``count`` job slots in the folder of a sweep; the slots take the GPUs in turn."""
    (folder / "slots").mkdir(exist_ok=True)
    slots = []
    for number in range(count):
        path = folder / "slots" / str(number)
        path.touch()
        slots.append(Slot(path, gpus[number % len(gpus)] if gpus else None))
    return tuple(slots)


@dataclass(frozen=True)
class JobTask:
    """A job with everything a worker needs to run it; plain values that can be sent to another machine.

    Attributes:
        job: the job.
        folder: its folder, absolute; it must exist.
        directory: the working directory.
        stop: the stop request of the sweep.
        retries: number of times a failed run is continued.
        flags: of ``gnewton train``, besides the overrides.
        slots: the job waits for the first free one of these; empty: it starts at once.
        environment: environment variables of the process, besides those of the worker.
    """

    job: Job
    folder: Path
    directory: Path
    stop: StopRequest
    retries: int = 0
    flags: tuple[str, ...] = ()
    slots: tuple[Slot, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)


def run_task(task: JobTask) -> JobEnd:
    """Run a job, retry it after failures, and return its end.

    A job that was run before is continued from its checkpoint, and one that has ended is left alone. After a
    stop request, a job that has not started stays pending and a running one is interrupted.
    """
    with _lock((task.folder,), task.stop) as lock:
        if lock is None:
            return JobEnd(task.job.digest, PENDING)
        end = read_job_end(task.job.digest, find_run(task.folder))
        if end.status in FINAL:
            return end
        with _lock([slot.path for slot in task.slots], task.stop) as slot:
            if task.stop.requested:
                return JobEnd(task.job.digest, PENDING)
            descriptors, environment = [lock.descriptor], {**os.environ, **task.environment}
            if slot is not None:
                descriptors.append(slot.descriptor)
                gpu = task.slots[slot.place].gpu
                environment |= {} if gpu is None else {VISIBLE: gpu}
            return _attempt(task, descriptors, environment)


def _attempt(task: JobTask, descriptors: Sequence[int], environment: dict[str, str]) -> JobEnd:
    """Start the run and continue it after failures, ``retries`` times at most."""
    start = time.monotonic()
    attempts = 0
    while True:
        attempts += 1
        offset = (task.folder / LOG).stat().st_size if (task.folder / LOG).exists() else 0
        code = _run_process(task, descriptors, environment)
        end = read_job_end(
            task.job.digest,
            find_run(task.folder),
            attempts=attempts,
            exit_code=code,
            seconds=time.monotonic() - start,
            line=last_line(task.folder / LOG, offset),
            stopped=task.stop.requested,
        )
        if end.status != FAILED or code == BAD_INPUT or attempts > task.retries:
            return end


def _run_process(task: JobTask, descriptors: Sequence[int], environment: dict[str, str]) -> int:
    """Run ``gnewton train`` and return its exit code; pass a stop request on as SIGTERM, then SIGKILL."""
    run = find_run(task.folder)
    if run is None:
        overrides = [*task.job.overrides, f"output_root={quoted(str(task.folder))}"]
    else:
        overrides = [text for text in task.job.overrides if text.startswith("imports=")]
        overrides = [f"resume={quoted(str(run))}", *overrides]
    with (task.folder / LOG).open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "gnewton", "train", *task.flags, *overrides],
            cwd=task.directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # signals of the terminal reach the sweep only
            pass_fds=descriptors,
        )
    terminated = False
    while True:
        try:
            return process.wait(INTERVAL)
        except subprocess.TimeoutExpired:  # noqa: PERF203
            if task.stop.requested and not terminated:
                process.send_signal(signal.SIGTERM)
                terminated = True
            elif terminated and task.stop.kills:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)


class _Lock(NamedTuple):
    """The path that is held, by its place in the list, and the file descriptor that holds it."""

    place: int
    descriptor: int


@contextmanager
def _lock(paths: Sequence[Path], stop: StopRequest) -> Iterator[_Lock | None]:
    """Wait for the first free one of ``paths`` and hold it; None without paths or after a stop request."""
    lock = None
    while paths and not stop.requested:
        held = ((place, try_hold(path)) for place, path in enumerate(paths))
        lock = next((_Lock(place, descriptor) for place, descriptor in held if descriptor is not None), None)
        if lock is not None:
            break
        time.sleep(INTERVAL)
    try:
        yield lock
    finally:
        if lock is not None:
            os.close(lock.descriptor)


def lost(task: JobTask, error: BaseException) -> JobEnd:
    """The result of a task whose worker died before it reported one."""
    message = str(error).strip().splitlines()
    reason = f"{type(error).__name__}: {message[-1]}" if message else type(error).__name__
    return JobEnd(task.job.digest, FAILED, attempts=1, error=f"its worker was lost ({reason})")
