"""The registry of launchers, and what each of them must offer."""

from __future__ import annotations

import importlib
import os
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

from gnewton.errors import InputError
from gnewton.options import option
from gnewton.registry import Registry
from gnewton.runfiles import FAILED
from gnewton.sweep.job import Ended
from gnewton.sweep.machine import cores, gpus
from gnewton.sweep.stop import Stop
from gnewton.sweep.work import Slot, Task

THREADS = "OMP_NUM_THREADS"


@dataclass(kw_only=True)
class Launcher(ABC):
    """Options of one way to run tasks. ``name`` is the choice ``launcher=name``.

    Attributes:
        jobs: how many run at the same time; None: as the launcher has room for.
    """

    name: str
    jobs: int | None = option(at_least=1)

    @abstractmethod
    def describe(self) -> str:
        """How many jobs run at a time, and with what, in a few words."""

    @abstractmethod
    def run(self, tasks: Sequence[Task], folder: Path, stop: Stop) -> Generator[Ended, None, None]:
        """Hand each task to :func:`gnewton.sweep.work.run_task` somewhere, and yield how they end.

        Args:
            tasks: what to run, in this order if there is one.
            folder: of the sweep, for what the launcher wants to keep.
            stop: the request that ``run_task`` obeys; whatever waits elsewhere is to be called off.
        """

    def check(self) -> None:  # noqa: B027 (most can work anywhere)
        """Make sure before anything starts that this launcher can work here.

        Raises:
            InputError: if it cannot.
        """


LAUNCHERS = Registry("launcher", "gnewton.sweep.launchers", Launcher)  # type: ignore[type-abstract]


@dataclass(kw_only=True)
class OnThisMachine(Launcher):
    """Jobs that share the cores and GPUs of this machine, each in a slot of its own."""

    threads: int | None = option(at_least=1)

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Jobs times threads must not exceed the cores."""
        if self.threads is not None and self.threads > self._most_threads():
            most = self._most_threads()
            yield "threads", f"must be <= {most}, jobs at a time times threads fit the {cores()} cores"

    def at_a_time(self) -> int:
        """How many jobs run at the same time."""
        return self.jobs if self.jobs is not None else max(1, len(gpus()))

    def describe(self) -> str:
        """How many jobs run at a time, and with what, in a few words."""
        count, devices, threads = self.at_a_time(), len(gpus()), self._threads()
        device = f", {devices} GPU{'s' * (devices > 1)}" if devices else ""
        return f"{count} at a time, {threads} thread{'s' * (threads > 1)} each{device}"

    def place(self, tasks: Sequence[Task], folder: Path) -> list[Task]:
        """Give the tasks the slots of this machine, and each its share of the threads."""
        devices = gpus()
        slots = []
        (folder / "slots").mkdir(exist_ok=True)
        for number in range(self.at_a_time()):
            path = folder / "slots" / str(number)
            path.touch()
            slots.append(Slot(path, devices[number % len(devices)] if devices else None))
        # all of it: workers that outlive a sweep have that of the time when they were started
        environment = {**os.environ, THREADS: str(self._threads())}
        return [replace(task, slots=tuple(slots), environment=environment) for task in tasks]

    def _most_threads(self) -> int:
        return max(1, cores() // self.at_a_time())

    def _threads(self) -> int:
        if self.threads is not None:
            return self.threads
        given = os.environ.get(THREADS, "")
        most = self._most_threads()
        return min(most, int(given)) if given.isdigit() and int(given) else most


def engine(launcher: str, module: str, extra: str) -> ModuleType:
    """The package that a launcher stands on.

    Raises:
        InputError: naming the extra to install if it is not there.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        raise InputError(
            f"launcher={launcher}: needs the package {module}; install it with pip install 'gnewton[{extra}]'"
        ) from None


def lost(task: Task, error: BaseException) -> Ended:
    """The end of a task whose worker failed instead of saying how it ended."""
    message = str(error).strip().splitlines()
    reason = f"{type(error).__name__}: {message[-1]}" if message else type(error).__name__
    return Ended(task.job.digest, FAILED, attempts=1, error=f"its worker was lost ({reason})")
