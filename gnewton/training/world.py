"""The processes of a data-parallel run, as ``torchrun`` starts them; a single process is the common case.

Every process holds the same model, draws the same batches and keeps its own rows of each. Gradients, losses
and right answers are summed over the processes, so that each makes the step that one process would make on
the whole batch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gnewton.backend import rank, sum_over_processes
from gnewton.data import Batch, BatchStream
from gnewton.errors import InputError
from gnewton.summary.batch import batch_size, cut, plain


class World:
    """``size`` processes of which this one is number ``rank``; number 0 writes the logs.

    Args:
        rank: number of this process, from 0.
        size: number of processes; with more than one, torch.distributed must be initialised.
        local_rank: number of this process on its machine: which CUDA device it takes.
    """

    def __init__(self, rank: int = 0, size: int = 1, local_rank: int = 0) -> None:
        self.rank = rank
        self.size = size
        self.local_rank = local_rank

    @property
    def writes(self) -> bool:
        """Whether this process writes the logs."""
        return self.rank == 0

    def meets(self, step: int, every: int) -> bool:
        """Whether the processes may ask each other after ``step`` steps: one alone always, several at times.

        To agree is to wait for the device.
        """
        return self.size == 1 or step % every == 0

    def check(self, samples: int, batch_size: int | None, option: str) -> None:
        """Check that every batch has a row for every process.

        Raises:
            InputError: naming ``option`` if the batches, or the last one of an epoch, are too small.
        """
        smallest = samples if batch_size is None else samples % batch_size or batch_size
        if smallest < self.size:
            raise InputError(
                f"{option}={batch_size}: leaves a batch of {smallest} samples for {self.size} processes; "
                "each needs at least one"
            )

    def share(self, batch: Batch) -> Batch:
        """This process's rows of a batch: consecutive ones, the shares of nearly equal size."""
        if self.size == 1:
            return batch
        batch = plain(batch)
        rows = batch_size(*batch)
        share: Batch = cut(batch, rows, self.rank * rows // self.size, (self.rank + 1) * rows // self.size)
        return share

    def combine(
        self, model: nn.Module, loss: Tensor, correct: Tensor | None, rows: int
    ) -> tuple[Tensor, Tensor | None]:
        """Turn ``.grad``, mean loss and right answers of each process's rows into those of the whole batch.

        One all-reduce; each mean is weighted by ``rows``, the number of its samples.
        """
        if self.size == 1:
            return loss, correct
        parameters = [p for p in model.parameters() if p.requires_grad]
        grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
        hits = correct.to(loss.dtype) if correct is not None else torch.zeros_like(loss)
        count = torch.full_like(loss, rows)
        *sums, loss, hits, total = sum_over_processes([*(g * rows for g in grads), loss * rows, hits, count])
        for p, gradient in zip(parameters, sums, strict=True):
            p.grad = gradient / total
        return loss / total, hits if correct is not None else None

    def agree(self, value: int, device: torch.device) -> int:
        """The largest ``value`` of any process, the same in all of them."""
        if self.size == 1:
            return value
        wanted = torch.tensor(value, device=device)
        dist.all_reduce(wanted, dist.ReduceOp.MAX)
        return int(wanted)

    def any(self, wanted: bool, device: torch.device) -> bool:
        """Whether ``wanted`` holds in any process; each of them gets the same answer."""
        return bool(self.agree(int(wanted), device))

    def barrier(self, device: torch.device) -> None:
        """Wait for all processes."""
        self.agree(0, device)

    def gather(self, value: Any) -> list[Any]:
        """The ``value`` of every process, by rank, in each of them."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def share_buffers(self, model: nn.Module) -> None:
        """Give every process the buffers (running statistics) of number 0."""
        if self.size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)


class SharedStream(BatchStream):
    """This process's rows of every batch of a stream."""

    def __init__(self, stream: BatchStream, world: World) -> None:
        self._stream = stream
        self._world = world

    @property
    def position(self) -> int:  # type: ignore[override]
        """Number of batches handed out so far; assigning it seeks."""
        return self._stream.position

    @position.setter
    def position(self, value: int) -> None:
        self._stream.position = value

    def __next__(self) -> Batch:
        return self._world.share(next(self._stream))


@contextmanager
def join_world(device: str) -> Iterator[World]:
    """The processes that ``torchrun`` announces in the environment, or this one alone.

    Args:
        device: the option ``trainer.device``: it decides between NCCL (CUDA) and Gloo.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World()
        return
    cuda = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield World(rank(), size, int(os.environ.get("LOCAL_RANK", "0")))
    finally:
        dist.destroy_process_group()
