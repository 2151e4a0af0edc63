"""manifest.csv: the jobs of a sweep and their states, always complete on the disk."""

from __future__ import annotations

import csv
import io
import shlex
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from gnewton.errors import InputError
from gnewton.experiment.folder import write_text
from gnewton.runfiles import PENDING
from gnewton.sweep.job import FINAL, Job, JobEnd

NAME = "manifest.csv"

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
        """The number of a job and the overrides in which it differs from the others."""
        common = set.intersection(*(set(other.job.overrides) for other in self.entries))
        specific = [text for text in entry.job.overrides if text not in common]
        return f"job {entry.number}  {shlex.join(specific or entry.job.overrides)}"

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
