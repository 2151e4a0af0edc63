"""Run what is open in the manifest of a sweep, and keep the manifest right whatever happens."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gnewton.errors import GnewtonError, InputError, Interrupted
from gnewton.experiment.folder import try_hold, write_json
from gnewton.runfiles import BROKEN, DONE, FAILED, INTERRUPTED, PENDING
from gnewton.sweep.job import FINAL, Ended
from gnewton.sweep.launchers import Launcher
from gnewton.sweep.manifest import Entry, Manifest
from gnewton.sweep.outcome import find_run, read_outcome, signal_name
from gnewton.sweep.stop import Stop, StopOnSignals
from gnewton.sweep.work import LOG, Task

DESCRIPTION = "sweep.json"


class SweepFailed(GnewtonError):
    """Jobs of a sweep failed or diverged; the message lists them."""

    exit_code = 4


@dataclass(frozen=True)
class Orders:
    """How the jobs of a sweep are to be run.

    Attributes:
        launcher: who runs them.
        directory: the working directory of all of them.
        flags: of ``gnewton train``, beside the overrides.
        retries: how often a failed job is continued before it counts as failed.
        fail_fast: whether the first failure stops the sweep.
        bad: the statuses that count as failures.
        say: takes each line that is shown.
    """

    launcher: Launcher
    directory: Path
    flags: tuple[str, ...] = ()
    retries: int = 0
    fail_fast: bool = False
    bad: tuple[str, ...] = BROKEN
    say: Callable[[str], None] = print


def run_sweep(manifest: Manifest, orders: Orders) -> None:
    """Run every job of the manifest that has not come to its end.

    Raises:
        SweepFailed: listing the jobs that failed or diverged, now or before.
        Interrupted: after a signal, once the jobs have stopped.
        GnewtonError: if the launcher itself fails.
    """
    folder = manifest.folder
    _settle(manifest)
    entries = manifest.open_entries()
    for entry in entries:
        job_folder(folder, entry).mkdir(parents=True, exist_ok=True)
    stop = Stop.of(folder)
    received = None
    if entries:
        tasks = [_task(entry, folder, stop, orders) for entry in entries]
        with StopOnSignals(stop) as signals, closing(orders.launcher.run(tasks, folder, stop)) as results:
            try:
                for ended in results:
                    _note(manifest, ended, stop, orders)
            except BaseException as error:
                stop.request()  # before the launcher waits for what it has started
                if isinstance(error, (GnewtonError, KeyboardInterrupt)):
                    raise
                reason = f"{type(error).__name__}: {error}"
                raise GnewtonError(f"launcher={orders.launcher.name}: {reason}") from error
        received = signals.received
    if received is not None:
        raise Interrupted(f"stopped by {signal_name(received)}: {summary(manifest)}", _exit_signal(received))
    bad = [entry for entry in manifest.entries if entry.ended.status in orders.bad]
    if bad:
        lines = [f"  {manifest.title(entry)}: {entry.ended.status}, {entry.ended.error}" for entry in bad]
        raise SweepFailed("\n".join([summary(manifest), *lines]))
    orders.say(summary(manifest))


def job_folder(folder: Path, entry: Entry) -> Path:
    """Where a job keeps its log and its run."""
    return folder / "jobs" / f"{entry.number:03d}"


def summary(manifest: Manifest) -> str:
    """How many jobs ended how."""
    counts = manifest.counts()
    return f"{count(len(manifest.entries))}: " + ", ".join(
        f"{counts[status]} {status}" for status in (DONE, *BROKEN, INTERRUPTED, PENDING) if counts[status]
    )


def count(jobs: int) -> str:
    """A number of jobs in words."""
    return "1 job" if jobs == 1 else f"{jobs} jobs"


def shown(path: Path) -> str:
    """A path as it is shortest from here."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


@contextmanager
def taken(folder: Path) -> Iterator[None]:
    """Within the block no other process may run the sweep in ``folder``.

    Raises:
        InputError: if one does.
    """
    descriptor = try_hold(folder)
    if descriptor is None:
        raise InputError(f"{folder}: this sweep is still under way in another process")
    try:
        yield
    finally:
        os.close(descriptor)


def write_description(folder: Path, content: dict[str, Any]) -> None:
    """Keep what a sweep was asked for, for whoever resumes it."""
    write_json(folder / DESCRIPTION, content)


def read_description(folder: Path) -> dict[str, Any]:
    """What :func:`write_description` kept.

    Raises:
        InputError: if it is not there, or cannot be read.
    """
    path = folder / DESCRIPTION
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"--resume {folder}: no sweep there, it holds no {DESCRIPTION}") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error
    return found


def _settle(manifest: Manifest) -> None:
    """Note the ends that came after the last sweep was killed."""
    for entry in manifest.open_entries():
        found = read_outcome(entry.job.digest, find_run(job_folder(manifest.folder, entry)))
        if found.status in FINAL:
            manifest.record(found)


def _task(entry: Entry, folder: Path, stop: Stop, orders: Orders) -> Task:
    return Task(
        job=entry.job,
        folder=job_folder(folder, entry),
        directory=orders.directory,
        stop=stop,
        retries=orders.retries,
        flags=orders.flags,
    )


def _note(manifest: Manifest, ended: Ended, stop: Stop, orders: Orders) -> None:
    entry = manifest.record(ended)
    if ended.status == PENDING:
        return
    counts = manifest.counts()
    over = sum(counts[status] for status in (*FINAL, FAILED))
    said = ended.error or ended.value
    line = f"[{over}/{len(manifest.entries)}] {ended.status}, {ended.seconds:.1f} s: {manifest.title(entry)}"
    orders.say(f"{line}  ({said})" if said else line)
    if ended.status == FAILED:
        orders.say(f"    log: {shown(job_folder(manifest.folder, entry) / LOG)}")
    if ended.status in orders.bad and orders.fail_fast and not stop.requested:
        orders.say("--fail-fast: the other jobs are asked to stop")
        stop.request()


def _exit_signal(number: int) -> int:
    """Every signal but SIGINT ends the command as SIGTERM does, like a run."""
    return number if number == signal.SIGINT else signal.SIGTERM
