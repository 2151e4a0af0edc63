"""Launchers by name. A new one is a :class:`Launcher` in a module here and a YAML under configs/launcher."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import ModuleType

from gnewton.errors import InputError
from gnewton.options import option, option_of
from gnewton.registry import Registry
from gnewton.runfiles import FAILED
from gnewton.sweep.manifest import JobEnd
from gnewton.sweep.worker import VISIBLE, JobTask, Slot, StopRequest, run_task

__all__ = ["LAUNCHERS", "Launcher"]


THREADS = "OMP_NUM_THREADS"


@dataclass(kw_only=True)
class Launcher(ABC):
    """One way to run the jobs of a sweep, with its options. ``name`` is the choice ``launcher=name``.

    Attributes:
        jobs: number of jobs that run at a time; None: the launcher decides.
    """

    name: str
    jobs: int | None = option(
        None, help="jobs at the same time; null: as many as there is room for", at_least=1
    )

    @abstractmethod
    def describe(self) -> str:
        """The number of concurrent jobs and the resources of each, for the first line of output."""

    @abstractmethod
    def run(self, tasks: Sequence[JobTask], folder: Path, stop: StopRequest) -> Generator[JobEnd, None, None]:
        """Pass each task to :func:`gnewton.sweep.worker.run_task` on some worker and yield the results.

        Args:
            tasks: the jobs, started in this order where the launcher has an order.
            folder: the folder of the sweep; the launcher may keep files in it.
            stop: the request that ``run_task`` obeys. The launcher itself cancels jobs that wait in a queue.
        """

    def check(self) -> None:  # noqa: B027 (most can work anywhere)
        """Check, before any job starts, that the launcher works on this machine.

        Raises:
            InputError: if it does not.
        """


LAUNCHERS = Registry("launcher", "gnewton.sweep.launchers", Launcher)  # type: ignore[type-abstract]


def make_slots(folder: Path, count: int, gpus: Sequence[str] = ()) -> tuple[Slot, ...]:
    """The files of ``count`` job slots in the folder of a sweep; the slots take the GPUs in turn."""
    (folder / "slots").mkdir(exist_ok=True)
    slots = []
    for number in range(count):
        path = folder / "slots" / str(number)
        path.touch()
        slots.append(Slot(path, gpus[number % len(gpus)] if gpus else None))
    return tuple(slots)


def require_package(option: str, module: str, extra: str) -> ModuleType:
    """Import the package that the choice ``option``, such as ``launcher=ray``, depends on.

    Raises:
        InputError: if the package is missing; the message names the extra that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        raise InputError(
            f"{option}: needs the package {module}; install it with pip install 'gnewton[{extra}]'"
        ) from None


def lost(task: JobTask, error: BaseException) -> JobEnd:
    """The result of a task whose worker died before it reported one."""
    message = str(error).strip().splitlines()
    reason = f"{type(error).__name__}: {message[-1]}" if message else type(error).__name__
    return JobEnd(task.job.digest, FAILED, attempts=1, error=f"its worker was lost ({reason})")


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
