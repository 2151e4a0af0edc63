"""Data sets: the interface of their splits to the trainer. Each set has a recipe in ``dataset_options``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor

    from gnewton.tasks import Task


Batch: TypeAlias = "tuple[Any, Tensor]"
"""(inputs, targets), the one form of batch that the trainer takes. The inputs are a tensor, or a tuple or
mapping of tensors for ``model(*inputs)`` or ``model(**inputs)``; each has an entry for every sample.
"""


class Split(ABC):
    """A fixed set of samples.

    Every order is a pure function of seed, epoch and position, so a run that resumes in the middle of an
    epoch sees exactly the batches it would have seen.
    """

    @abstractmethod
    def __len__(self) -> int:
        """Number of samples."""

    def steps(self, batch_size: int | None) -> int:
        """Number of batches in an epoch."""
        return 1 if batch_size is None else -(-len(self) // batch_size)

    @abstractmethod
    def epoch(self, index: int, batch_size: int | None, *, skip: int = 0) -> Iterator[Batch]:
        """Shuffled, augmented batches of epoch ``index``; the last one may be smaller.

        Args:
            index: epoch number, from 0; decides the permutation and the augmentation, together with the seed.
            batch_size: samples per batch; None: all of them in one batch.
            skip: number of leading batches to leave out without computing them.
        """

    @abstractmethod
    def stream(self, batch_size: int | None, *, seed: int) -> BatchStream:
        """An endless series of full batches in an order of its own, independent of :meth:`epoch`."""

    @abstractmethod
    def in_order(self, batch_size: int, limit: int | None = None) -> Iterator[Batch]:
        """Batches in the stored order without augmentation, of the first ``limit`` samples if it is given."""


class BatchStream(ABC):
    """An endless iterator of batches whose position can be saved and restored."""

    position: int
    """Number of batches returned so far; assigning it seeks."""

    def __iter__(self) -> BatchStream:
        return self

    @abstractmethod
    def __next__(self) -> Batch:
        """The next batch."""


@dataclass(frozen=True)
class DataSet:
    """The three splits of a data set and the task they pose.

    Attributes:
        name: the choice ``data=name``.
        task: the learning problem.
        train, validation, test: the splits.
        remarks: warnings about data that look odd but may be intended, a line each.
        digest: equal for equal arrays, to tell one user's file from another; None for sets known by name.
    """

    name: str
    task: Task
    train: Split
    validation: Split
    test: Split
    remarks: tuple[str, ...] = ()
    digest: str | None = None
