"""The interface of a launcher, and the registry of launchers."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from gnewton.errors import InputError
from gnewton.options import option
from gnewton.registry import Registry
from gnewton.runfiles import FAILED
from gnewton.sweep.job import JobEnd
from gnewton.sweep.stop import StopRequest
from gnewton.sweep.worker import JobTask, Slot

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
