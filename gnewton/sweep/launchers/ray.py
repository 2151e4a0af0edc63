"""Jobs as tasks of Ray: of a running cluster, or of a Ray started on this machine for the sweep."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gnewton.errors import InputError, first_line
from gnewton.options import option
from gnewton.sweep.launchers import LAUNCHERS, THREADS, Launcher, lost, require_package
from gnewton.sweep.manifest import JobEnd
from gnewton.sweep.worker import JobTask, StopRequest, run_task, without_interrupts

PACKAGE = EXTRA = "ray"


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
        require_package(f"launcher={self.name}", PACKAGE, EXTRA)

    def run(self, tasks: Sequence[JobTask], folder: Path, stop: StopRequest) -> Generator[JobEnd, None, None]:
        """Submit the tasks and yield the results as they arrive; see :meth:`Launcher.run`."""
        ray = require_package(f"launcher={self.name}", PACKAGE, EXTRA)
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
