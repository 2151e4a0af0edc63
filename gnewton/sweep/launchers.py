"""Launchers, the ways to start the jobs of a sweep: on this machine, on a Slurm cluster, as tasks of Ray.

A new one is a :class:`Launcher` here and a YAML under configs/launcher.
"""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from gnewton.errors import InputError, first_line
from gnewton.options import option, option_of
from gnewton.registry import Registry
from gnewton.runfiles import PENDING
from gnewton.sweep.manifest import JobEnd
from gnewton.sweep.worker import (
    INTERVAL,
    VISIBLE,
    JobTask,
    StopRequest,
    lost,
    make_slots,
    run_task,
    without_interrupts,
)

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


# --- this machine -------------------------------------------------------------------------------------------


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


# --- a Slurm cluster, by one job array of submitit ----------------------------------------------------------


@LAUNCHERS.register("slurm")
@dataclass(kw_only=True)
class SlurmLauncher(Launcher):
    """The resources each job requests. All nodes must see the folder of the sweep on a shared file system.

    Attributes:
        cluster: "slurm", or "local" for submitit's own processes on this machine.
        threads: cores and CPU threads of a job.
        gpus: GPUs of a job.
        memory_gib: memory of a job; None: the cluster's default.
        minutes: time limit of a job.
        partition: of the cluster; None: its default.
        options: further options of ``sbatch``.
    """

    jobs: int | None = option_of(
        Launcher, "jobs", 16, help="jobs of the array at the same time; null: all of them"
    )
    cluster: str = option(
        "slurm",
        help="slurm; local: submitit's own processes on this machine, to try it without a cluster",
        choices=("slurm", "local"),
    )
    threads: int = option(4, help="cores and CPU threads of a job", at_least=1)
    gpus: int = option(1, help="GPUs of a job", at_least=0)
    memory_gib: float | None = option(
        None, help="memory of a job in GiB; null: what the cluster gives", above=0
    )
    minutes: int = option(240, help="time limit of a job", at_least=1)
    partition: str | None = option(None, help="partition of the cluster; null: its default")
    options: dict[str, Any] = option(
        {}, help="further options of sbatch, such as {account: mine, constraint: a100}"
    )

    def describe(self) -> str:
        """The number of concurrent jobs and the resources of each."""
        where = "on Slurm" if self.cluster == "slurm" else "through submitit on this machine"
        most = "all" if self.jobs is None else f"at most {self.jobs}"
        return f"{where}, {most} at a time, {self.threads} cores and {self.gpus} GPUs each"

    def check(self) -> None:
        """submitit must be installed, and Slurm too unless ``cluster`` is "local"."""
        submitit = require_package(f"launcher={self.name}", "submitit", "slurm")
        if self.cluster == "slurm" and submitit.SlurmExecutor.affinity() < 0:
            raise InputError(
                f"launcher={self.name}: there is no Slurm on this machine (no srun); submit from a node that "
                "has it, or give launcher.cluster=local to try it here"
            )

    def run(self, tasks: Sequence[JobTask], folder: Path, stop: StopRequest) -> Generator[JobEnd, None, None]:
        """Submit all tasks, then poll for those that have ended; see :meth:`Launcher.run`."""
        executor = require_package(f"launcher={self.name}", "submitit", "slurm").AutoExecutor(
            folder / "submitit", cluster=self.cluster
        )
        executor.update_parameters(**self._parameters(len(tasks)))
        tasks = [replace(task, environment={THREADS: str(self.threads)}) for task in tasks]
        if self.cluster == "local" and self.jobs is not None:  # its executor starts all jobs at once
            slots = make_slots(folder, self.jobs)
            tasks = [replace(task, slots=slots) for task in tasks]
        with without_interrupts():
            submitted = list(zip(tasks, executor.map_array(run_task, tasks), strict=True))
        while submitted:
            if stop.requested:
                for _, job in submitted:
                    if job.state == "PENDING":
                        job.cancel()
            ended = [(task, job) for task, job in submitted if job.done()]
            yield from (_outcome(task, job, stop) for task, job in ended)
            submitted = [pair for pair in submitted if pair not in ended]
            time.sleep(INTERVAL if self.cluster == "local" else 1.0)

    def _parameters(self, count: int) -> dict[str, Any]:
        common: dict[str, Any] = {
            "name": "gnewton",
            "nodes": 1,
            "tasks_per_node": 1,
            "cpus_per_task": self.threads,
            "gpus_per_node": self.gpus,
            "timeout_min": self.minutes,
        }
        if self.memory_gib is not None:
            common["mem_gb"] = self.memory_gib
        if self.cluster == "local":
            return common
        return common | {
            "slurm_array_parallelism": self.jobs if self.jobs is not None else count,
            "slurm_partition": self.partition,
            "slurm_additional_parameters": dict(self.options),
        }


def _outcome(task: JobTask, job: Any, stop: StopRequest) -> JobEnd:
    error = job.exception()
    if error is None:
        result: JobEnd = job.result()
        return result
    if stop.requested:
        return JobEnd(task.job.digest, PENDING)
    return lost(task, error)


# --- Ray: a running cluster, or one on this machine for the sweep -------------------------------------------


@LAUNCHERS.register("ray")
@dataclass(kw_only=True)
class RayLauncher(Launcher):
    """Ray schedules the jobs by the resources they request, at most ``jobs`` at a time.

    Attributes:
        address: of a running cluster; None: the one Ray finds, else a new one on this machine.
        threads: cores and CPU threads of a job.
        gpus: GPUs of a job; jobs may share one by fractions.
    """

    address: str | None = option(
        None, help="address of a running cluster; null: a running one, else one for the sweep"
    )
    threads: int = option(1, help="cores and CPU threads of a job", at_least=1)
    gpus: float = option(0.0, help="GPUs of a job; a fraction lets several jobs share one", at_least=0)

    def describe(self) -> str:
        """The number of concurrent jobs and the resources of each."""
        most = (
            "as many at a time as Ray has room for" if self.jobs is None else f"at most {self.jobs} at a time"
        )
        return f"{most}, {self.threads} cores and {self.gpus:g} GPUs each"

    def check(self) -> None:
        """Ray must be installed."""
        require_package(f"launcher={self.name}", "ray", "ray")

    def run(self, tasks: Sequence[JobTask], folder: Path, stop: StopRequest) -> Generator[JobEnd, None, None]:
        """Submit the tasks and yield the results as they arrive; see :meth:`Launcher.run`."""
        ray = require_package(f"launcher={self.name}", "ray", "ray")
        with without_interrupts():
            try:
                ray.init(self.address, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
            except Exception as error:  # a plain one where a node does not come up in time
                ray.shutdown()
                where = (
                    f"launcher={self.name}" if self.address is None else f"launcher.address={self.address}"
                )
                raise InputError(f"{where}: Ray does not start: {first_line(error)}") from error
        try:
            self._require_resources(ray.cluster_resources())
            remote = ray.remote(num_cpus=self.threads, num_gpus=self.gpus, max_retries=0)(run_task)
            environment = {THREADS: str(self.threads)}
            queue = [replace(task, environment=environment) for task in reversed(tasks)]
            running: dict[Any, JobTask] = {}
            while queue or running:
                while queue and (self.jobs is None or len(running) < self.jobs):
                    task = queue.pop()
                    running[remote.remote(task)] = task
                for reference in ray.wait(list(running), timeout=1.0)[0]:
                    task = running.pop(reference)
                    try:
                        yield ray.get(reference)
                    except ray.exceptions.RayError as error:
                        yield lost(task, error)
        finally:
            ray.shutdown()

    def _require_resources(self, resources: dict[str, float]) -> None:
        """Refuse a job that exceeds the cluster: Ray would wait for the resources forever."""
        for name, requested, total in (
            ("threads", self.threads, resources.get("CPU", 0)),
            ("gpus", self.gpus, resources.get("GPU", 0)),
        ):
            if requested > total:
                raise InputError(f"launcher.{name}={requested:g}: must be <= {total:g}, what Ray has")
