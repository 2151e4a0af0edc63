"""Jobs on this machine, which share its processor cores and GPUs."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from gnewton.options import option, option_of
from gnewton.sweep.job import JobEnd
from gnewton.sweep.launchers.launcher import LAUNCHERS, THREADS, Launcher, lost, make_slots
from gnewton.sweep.stop import StopRequest
from gnewton.sweep.worker import VISIBLE, JobTask, run_task


@LAUNCHERS.register("local")
@dataclass(kw_only=True)
class LocalLauncher(Launcher):
    """One process per job. Threads of this process wait for them.

    Attributes:
        threads: CPU threads of a job; None: its share of the cores.
    """

    jobs: int | None = option_of(
        Launcher, "jobs", help="jobs at the same time; null: one per GPU, one where there is no GPU"
    )
    threads: int | None = option(
        None, help="CPU threads of a job; null: its share of the cores, at most OMP_NUM_THREADS", at_least=1
    )

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Jobs times threads must not exceed the number of cores."""
        if self.threads is not None and self.threads > (most := self._most_threads()):
            yield "threads", f"must be <= {most}, jobs at a time times threads fit the {cores()} cores"

    def concurrency(self) -> int:
        """Number of jobs that run at a time: ``jobs``, else one per GPU."""
        return self.jobs if self.jobs is not None else max(1, len(gpus()))

    def describe(self) -> str:
        """The number of concurrent jobs, and the threads and GPUs they use."""
        count, devices, threads = self.concurrency(), len(gpus()), self._threads()
        device = f", {devices} GPU{'s' * (devices > 1)}" if devices else ""
        return f"{count} at a time, {threads} thread{'s' * (threads > 1)} each{device}"

    def run(self, tasks: Sequence[JobTask], folder: Path, stop: StopRequest) -> Generator[JobEnd, None, None]:
        """Run the tasks in order, :meth:`concurrency` at a time; see :meth:`Launcher.run`."""
        with ThreadPoolExecutor(self.concurrency()) as pool:
            futures = {pool.submit(run_task, task): task for task in self.place(tasks, folder)}
            for future in as_completed(futures):
                error = future.exception()
                yield future.result() if error is None else lost(futures[future], error)

    def place(self, tasks: Sequence[JobTask], folder: Path) -> list[JobTask]:
        """Add the job slots of this machine, with their GPUs, and the thread count to each task."""
        slots = make_slots(folder, self.concurrency(), gpus())
        environment = {THREADS: str(self._threads())}
        return [replace(task, slots=slots, environment=environment) for task in tasks]

    def _most_threads(self) -> int:
        return max(1, cores() // self.concurrency())

    def _threads(self) -> int:
        if self.threads is not None:
            return self.threads
        limit = os.environ.get(THREADS, "")
        most = self._most_threads()
        return min(most, int(limit)) if limit.isdigit() and int(limit) else most


def cores() -> int:
    """Number of processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def gpus() -> list[str]:
    """The GPUs by their names in CUDA_VISIBLE_DEVICES: those listed there, else those of the driver."""
    if VISIBLE in os.environ:
        return [name.strip() for name in os.environ[VISIBLE].split(",") if name.strip()]
    return _driver_gpus()


@cache
def _driver_gpus() -> list[str]:
    """The GPUs of this machine, from ``nvidia-smi``, so that no CUDA context is created."""
    try:
        listing = subprocess.run(
            ["nvidia-smi", "--list-gpus"], capture_output=True, text=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return re.findall(r"^GPU (\d+):", listing.stdout, re.M)
