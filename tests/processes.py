"""Processes and process groups for tests, of which nothing may be left when they end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

FORK = mp.get_context("fork")


def in_processes(work: Callable[..., None], size: int, *arguments: Any) -> None:
    """``work(rank, size, *arguments)`` in ``size`` processes, each of which must end well.

    They are forks, which have torch and this package already: a new process takes seconds to load them.
    """
    processes = [FORK.Process(target=work, args=(rank, size, *arguments)) for rank in range(size)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    for process in processes:
        process.kill()  # if it hangs
    assert [process.exitcode for process in processes] == [0] * size


@contextmanager
def process_group(rank: int, size: int, folder: Path | str) -> Iterator[None]:
    """One of ``size`` processes that meet in ``folder`` over Gloo, on one thread.

    A thread of the group that outlives it would abort the process at its end, at times: that it does not is
    asserted wherever the threads can be listed.
    """
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=size)
    try:
        yield
    finally:
        dist.destroy_process_group()
    left = [name for name in threads() if "gloo" in name]
    assert not left, f"threads left by the process group: {left}"


def threads() -> list[str]:
    """The names of this process's threads, where the system tells."""
    return [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
