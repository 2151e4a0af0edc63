"""A process for each job on this machine, watched by a thread of this one."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from gnewton.sweep.job import Ended
from gnewton.sweep.launchers.base import LAUNCHERS, OnThisMachine, lost
from gnewton.sweep.stop import Stop
from gnewton.sweep.work import Task, run_task


@LAUNCHERS.register("local")
@dataclass(kw_only=True)
class Local(OnThisMachine):
    """The pool of :mod:`concurrent.futures`; its threads only wait for the processes they started."""

    def run(self, tasks: Sequence[Task], folder: Path, stop: Stop) -> Generator[Ended, None, None]:
        """Run them in order, so many at a time; see :meth:`Launcher.run`."""
        with ThreadPoolExecutor(self.at_a_time()) as pool:
            futures = {pool.submit(run_task, task): task for task in self.place(tasks, folder)}
            for future in as_completed(futures):
                error = future.exception()
                yield future.result() if error is None else lost(futures[future], error)
