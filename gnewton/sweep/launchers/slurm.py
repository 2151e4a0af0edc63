"""Jobs on a Slurm cluster, submitted by submitit as one job array."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gnewton.errors import InputError
from gnewton.options import option, option_of
from gnewton.runfiles import PENDING
from gnewton.sweep.launchers import LAUNCHERS, THREADS, Launcher, lost, make_slots, require_package
from gnewton.sweep.manifest import JobEnd
from gnewton.sweep.worker import INTERVAL, JobTask, StopRequest, run_task, without_interrupts

PACKAGE, EXTRA = "submitit", "slurm"


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
        submitit = require_package(f"launcher={self.name}", PACKAGE, EXTRA)
        if self.cluster == "slurm" and submitit.SlurmExecutor.affinity() < 0:
            raise InputError(
                f"launcher={self.name}: there is no Slurm on this machine (no srun); submit from a node that "
                "has it, or give launcher.cluster=local to try it here"
            )

    def run(self, tasks: Sequence[JobTask], folder: Path, stop: StopRequest) -> Generator[JobEnd, None, None]:
        """Submit all tasks, then poll for those that have ended; see :meth:`Launcher.run`."""
        executor = require_package(f"launcher={self.name}", PACKAGE, EXTRA).AutoExecutor(
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
