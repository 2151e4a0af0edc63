"""manifest.csv: the jobs of a sweep and how each ended, always whole on the disk."""

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
from gnewton.sweep.job import FINAL, Ended, Job

NAME = "manifest.csv"

COLUMNS = ("job", "hash", "status", "attempts", "exit_code", "seconds", "run", "error", "overrides")
"""``run`` is the run folder, relative to the folder of the sweep; ``overrides`` are quoted as for a shell."""


@dataclass(frozen=True)
class Entry:
    """One line: a job, its number from 1, and how it ended."""

    number: int
    job: Job
    ended: Ended


class Manifest:
    """The jobs of a sweep by the hash of their configuration, and how each ended.

    Args:
        folder: of the sweep.
        entries: by number.
    """

    def __init__(self, folder: Path, entries: Iterable[Entry] = ()) -> None:
        self.folder = folder
        self._entries = {entry.job.digest: entry for entry in entries}

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Read it.

        Raises:
            InputError: if it is not there or not what :meth:`save` wrote.
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
        """Take in jobs; one whose configuration is there already is not taken twice."""
        for job in jobs:
            number = len(self._entries) + 1
            self._entries.setdefault(job.digest, Entry(number, job, Ended(job.digest, PENDING)))
        self.save()

    def record(self, ended: Ended) -> Entry:
        """Note how a job ended; attempts and seconds add up."""
        entry = self._entries[ended.digest]
        summed = replace(
            ended,
            attempts=entry.ended.attempts + ended.attempts,
            seconds=entry.ended.seconds + ended.seconds,
        )
        if ended.status == PENDING and entry.ended.status != PENDING:  # not started this time
            summed = entry.ended
        self._entries[ended.digest] = replace(entry, ended=summed)
        self.save()
        return self._entries[ended.digest]

    def save(self) -> None:
        """Write it whole, or not at all."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(_row(entry, self.folder) for entry in self.entries)
        write_text(self.folder / NAME, text.getvalue())

    @property
    def entries(self) -> list[Entry]:
        """All of them, by number."""
        return list(self._entries.values())

    def title(self, entry: Entry) -> str:
        """A job by its number and what tells it from the others."""
        common = set.intersection(*(set(each.job.overrides) for each in self.entries))
        own = [text for text in entry.job.overrides if text not in common]
        return f"job {entry.number}  {shlex.join(own or entry.job.overrides)}"

    def of(self, job: Job) -> Entry:
        """The entry of a job."""
        return self._entries[job.digest]

    def open_entries(self) -> list[Entry]:
        """Those that are still to be run."""
        return [entry for entry in self.entries if entry.ended.status not in FINAL]

    def counts(self) -> Counter[str]:
        """How many jobs have each status."""
        return Counter(entry.ended.status for entry in self.entries)


def _row(entry: Entry, folder: Path) -> list[object]:
    ended = entry.ended
    run = "" if ended.folder is None else ended.folder.relative_to(folder).as_posix()
    code = "" if ended.exit_code is None else ended.exit_code
    return [
        entry.number,
        entry.job.digest,
        ended.status,
        ended.attempts,
        code,
        f"{ended.seconds:.1f}",
        run,
        ended.error,
        shlex.join(entry.job.overrides),
    ]


def _entry(row: dict[str, str], folder: Path) -> Entry:
    job = Job(row["hash"], tuple(shlex.split(row["overrides"])))
    ended = Ended(
        job.digest,
        row["status"],
        int(row["attempts"]),
        int(row["exit_code"]) if row["exit_code"] else None,
        float(row["seconds"]),
        folder / row["run"] if row["run"] else None,
        row["error"],
    )
    return Entry(int(row["job"]), job, ended)
