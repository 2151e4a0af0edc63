"""Run the open jobs of a sweep; the manifest stays correct whatever happens."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gnewton.errors import GnewtonError, InputError, Interrupted
from gnewton.experiment.folder import try_hold, write_json
from gnewton.runfiles import BROKEN, DONE, FAILED, INTERRUPTED, PENDING
from gnewton.sweep.launchers import Launcher
from gnewton.sweep.manifest import FINAL, Entry, Job, JobEnd, Manifest, find_run, read_job_end, signal_name
from gnewton.sweep.worker import LOG, JobTask, StopOnSignals, StopRequest

DESCRIPTION = "sweep.json"


class SweepFailed(GnewtonError):
    """Jobs of a sweep failed or diverged; the message lists them."""

    exit_code = 4


@dataclass(frozen=True)
class Orders:
    """How the jobs of a sweep are run.

    Attributes:
        launcher: starts the jobs.
        directory: their working directory.
        require_same: raises an InputError if a run found in the folder of a job has another configuration.
        flags: of ``gnewton train``, besides the overrides.
        retries: number of times a failed job is continued before it counts as failed.
        fail_fast: whether the first failure stops the sweep.
        bad: statuses that count as failures.
        say: receives each line of output.
        remark: what to say after the line of a job that has ended; empty: nothing.
    """

    launcher: Launcher
    directory: Path
    require_same: Callable[[Path, Job], None]
    flags: tuple[str, ...] = ()
    retries: int = 0
    fail_fast: bool = False
    bad: tuple[str, ...] = BROKEN
    say: Callable[[str], None] = print
    remark: Callable[[JobEnd], str] = lambda end: ""


def run_sweep(manifest: Manifest, orders: Orders) -> None:
    """Run every job of the manifest that has not come to its end.

    Raises:
        InputError: before any job is run, if the folder of one holds a run of another configuration.
        SweepFailed: listing the jobs that failed or diverged, now or before.
        Interrupted: after a signal, once the jobs have stopped.
        GnewtonError: if the launcher itself fails.
    """
    folder = manifest.folder
    for entry in manifest.open_entries():
        if (run := find_run(job_folder(folder, entry))) is not None:
            orders.require_same(run, entry.job)
    _record_late_ends(manifest)
    entries = manifest.open_entries()
    for entry in entries:
        job_folder(folder, entry).mkdir(parents=True, exist_ok=True)
    stop = StopRequest.of(folder)
    received = None
    if entries:
        tasks = [_task(entry, folder, stop, orders) for entry in entries]
        with StopOnSignals(stop) as signals, closing(orders.launcher.run(tasks, folder, stop)) as ends:
            try:
                for end in ends:
                    _record(manifest, end, stop, orders)
            except BaseException as error:
                stop.request()  # before the launcher waits for the jobs it has started
                if isinstance(error, (GnewtonError, KeyboardInterrupt)):
                    raise
                reason = f"{type(error).__name__}: {error}"
                raise GnewtonError(f"launcher={orders.launcher.name}: {reason}") from error
        received = signals.received
    if received is not None:
        raise Interrupted(f"stopped by {signal_name(received)}: {summary(manifest)}", received)
    bad = [entry for entry in manifest.entries if entry.end.status in orders.bad]
    if bad:
        lines = [f"  {manifest.title(entry)}: {entry.end.status}, {entry.end.error}" for entry in bad]
        raise SweepFailed("\n".join([summary(manifest), *lines]))
    orders.say(summary(manifest))


def job_folder(folder: Path, entry: Entry) -> Path:
    """The folder of a job, with its log and its run."""
    return folder / "jobs" / f"{entry.number:03d}"


def summary(manifest: Manifest) -> str:
    """Number of jobs by status, in words."""
    counts = manifest.counts()
    return f"{count(len(manifest.entries))}: " + ", ".join(
        f"{counts[status]} {status}" for status in (DONE, *BROKEN, INTERRUPTED, PENDING) if counts[status]
    )


def count(jobs: int) -> str:
    """A number of jobs in words."""
    return "1 job" if jobs == 1 else f"{jobs} jobs"


def short_path(path: Path) -> str:
    """A path relative to the working directory, where it lies below."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Within the block, no other process can run the sweep in ``folder``.

    Raises:
        InputError: if another process runs it already.
    """
    descriptor = try_hold(folder)
    if descriptor is None:
        raise InputError(f"{folder}: this sweep is still under way in another process")
    try:
        yield
    finally:
        os.close(descriptor)


def write_description(folder: Path, content: dict[str, Any]) -> None:
    """Write the command and the options of a sweep, from which it can be resumed."""
    write_json(folder / DESCRIPTION, content)


def read_description(folder: Path) -> dict[str, Any]:
    """The content that :func:`write_description` wrote.

    Raises:
        InputError: if there is none, or it cannot be read.
    """
    path = folder / DESCRIPTION
    try:
        description: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"--resume {folder}: no sweep there, it holds no {DESCRIPTION}") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error
    return description


def _record_late_ends(manifest: Manifest) -> None:
    """Record the jobs that ended after the last invocation of the sweep was killed."""
    for entry in manifest.open_entries():
        end = read_job_end(entry.job.digest, find_run(job_folder(manifest.folder, entry)))
        if end.status in FINAL:
            manifest.record(end)


def _task(entry: Entry, folder: Path, stop: StopRequest, orders: Orders) -> JobTask:
    return JobTask(
        job=entry.job,
        folder=job_folder(folder, entry),
        directory=orders.directory,
        stop=stop,
        retries=orders.retries,
        flags=orders.flags,
    )


def _record(manifest: Manifest, end: JobEnd, stop: StopRequest, orders: Orders) -> None:
    """Store the end of a job, report it in a line, and stop the sweep if it was the first failure."""
    entry = manifest.record(end)
    if end.status == PENDING:
        return
    counts = manifest.counts()
    over = sum(counts[status] for status in (*FINAL, FAILED))
    detail = end.error or end.value
    line = f"[{over}/{len(manifest.entries)}] {end.status}, {end.seconds:.1f} s: {manifest.title(entry)}"
    orders.say(f"{line}  ({detail})" if detail else line)
    if remark := orders.remark(end):
        orders.say(f"    {remark}")
    if end.status == FAILED:
        orders.say(f"    log: {short_path(job_folder(manifest.folder, entry) / LOG)}")
    if end.status in orders.bad and orders.fail_fast and not stop.requested:
        orders.say("--fail-fast: the other jobs are asked to stop")
        stop.request()
