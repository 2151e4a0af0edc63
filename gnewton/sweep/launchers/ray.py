"""Tasks of a Ray cluster, or of a Ray that is started on this machine for the sweep."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gnewton.errors import InputError
from gnewton.options import option
from gnewton.sweep.job import Ended
from gnewton.sweep.launchers.base import LAUNCHERS, THREADS, Launcher, engine, lost
from gnewton.sweep.stop import Stop, without_interrupts
from gnewton.sweep.work import Task, run_task

PACKAGE = EXTRA = "ray"


@LAUNCHERS.register("ray")
@dataclass(kw_only=True)
class Ray(Launcher):
    """What each job asks of Ray, which runs as many as it has room for, and ``jobs`` at most."""

    address: str | None = option()
    threads: int = option(at_least=1)
    gpus: float = option(at_least=0)

    def describe(self) -> str:
        """How many jobs run at a time, and with what, in a few words."""
        most = (
            "as many at a time as Ray has room for" if self.jobs is None else f"at most {self.jobs} at a time"
        )
        return f"{most}, {self.threads} cores and {self.gpus:g} GPUs each"

    def check(self) -> None:
        """Ray must be installed."""
        engine(self.name, PACKAGE, EXTRA)

    def run(self, tasks: Sequence[Task], folder: Path, stop: Stop) -> Generator[Ended, None, None]:
        """Submit all, and take what ends; see :meth:`Launcher.run`."""
        ray = engine(self.name, PACKAGE, EXTRA)
        with without_interrupts():
            try:
                ray.init(self.address, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise InputError(f"launcher.address={self.address}: {error}") from error
        try:
            self._require_room(ray.cluster_resources())
            remote = ray.remote(num_cpus=self.threads, num_gpus=self.gpus, max_retries=0)(run_task)
            environment = {THREADS: str(self.threads)}
            left = [replace(task, environment=environment) for task in reversed(tasks)]
            waiting: dict[Any, Task] = {}
            while left or waiting:
                while left and (self.jobs is None or len(waiting) < self.jobs):
                    task = left.pop()
                    waiting[remote.remote(task)] = task
                for reference in ray.wait(list(waiting), timeout=1.0)[0]:
                    task = waiting.pop(reference)
                    try:
                        yield ray.get(reference)
                    except ray.exceptions.RayError as error:
                        yield lost(task, error)
        finally:
            ray.shutdown()

    def _require_room(self, resources: dict[str, float]) -> None:
        """Ray would wait forever for what it does not have."""
        for name, wanted, there in (
            ("threads", self.threads, resources.get("CPU", 0)),
            ("gpus", self.gpus, resources.get("GPU", 0)),
        ):
            if wanted > there:
                raise InputError(f"launcher.{name}={wanted:g}: must be <= {there:g}, what Ray has")
