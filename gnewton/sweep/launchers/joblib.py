"""joblib's worker processes on this machine."""

from __future__ import annotations

import signal
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gnewton.sweep.job import Ended
from gnewton.sweep.launchers.base import LAUNCHERS, OnThisMachine, lost
from gnewton.sweep.stop import Stop, without_interrupts
from gnewton.sweep.work import Task, run_task


@LAUNCHERS.register("joblib")
@dataclass(kw_only=True)
class Joblib(OnThisMachine):
    """joblib with loky: the jobs are watched by worker processes instead of by threads of this one."""

    def run(self, tasks: Sequence[Task], folder: Path, stop: Stop) -> Generator[Ended, None, None]:
        """Run them in order, so many at a time; see :meth:`Launcher.run`."""
        from joblib import Parallel, delayed

        # each worker is idle while it waits, so tasks are handed over one by one
        parallel = Parallel(
            self.at_a_time(),
            backend="loky",
            return_as="generator_unordered",
            batch_size=1,
            pre_dispatch="all",
        )
        with without_interrupts():
            results = parallel(delayed(_run)(task) for task in self.place(tasks, folder))
        yield from results


def _run(task: Task) -> Ended:
    for number in (signal.SIGINT, signal.SIGTERM):  # whoever sends them to all processes means the sweep
        signal.signal(number, lambda number, frame: None)  # not SIG_IGN, which the job would inherit
    try:
        return run_task(task)
    except OSError as error:
        return lost(task, error)
