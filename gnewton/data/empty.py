"""The data set of a function to minimise: steps to count, and empty batches."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import repeat

import torch

from gnewton.data.dataset_options import NoData
from gnewton.data.splits import Batch, BatchStream, DataSet, Split
from gnewton.tasks import Minimisation


def build_empty(options: NoData, device: torch.device, dtype: torch.dtype, seed: int) -> DataSet:
    """Three times the same split; ``seed`` has no effect."""
    split = EmptySplit(options.steps_per_epoch, device, dtype)
    task = Minimisation(input_shape=(), outputs=1)
    return DataSet(options.name, task, train=split, validation=split, test=split)


class EmptySplit(Split):
    """A fixed number of steps an epoch, whatever the batch size; each batch is one sample of no numbers.

    Both tensors of a batch have shape (1, 0): empty, yet a mean over the batch weighs it as one sample.
    Evaluation (:meth:`in_order`) sees one such batch, as the function has one value.
    """

    def __init__(self, steps: int, device: torch.device, dtype: torch.dtype) -> None:
        self._steps = steps
        nothing = torch.empty((1, 0), device=device, dtype=dtype)
        self._batch: Batch = (nothing, nothing)

    def __len__(self) -> int:
        """Steps in an epoch."""
        return self._steps

    def steps(self, batch_size: int | None) -> int:
        """The same, whatever the batch size."""
        return self._steps

    def epoch(self, index: int, batch_size: int | None, *, skip: int = 0) -> Iterator[Batch]:
        """One empty batch a step; ``batch_size`` has no effect."""
        return repeat(self._batch, max(self._steps - skip, 0))

    def stream(self, batch_size: int | None, *, seed: int) -> BatchStream:
        """Empty batches without end."""
        return _EmptyStream(self._batch)

    def in_order(self, batch_size: int, limit: int | None = None) -> Iterator[Batch]:
        """One empty batch: one evaluation of the function."""
        return iter((self._batch,))


class _EmptyStream(BatchStream):
    def __init__(self, batch: Batch) -> None:
        self.position = 0
        self._batch = batch

    def __next__(self) -> Batch:
        self.position += 1
        return self._batch
