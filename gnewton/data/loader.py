"""A split read by a DataLoader, with the same seekable orders as one held in memory."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from gnewton.data.image_files import ImageFiles, Ticket, UnreadableImage, stack
from gnewton.data.order import generator_for, mixed_seed, shuffled
from gnewton.data.splits import Batch, BatchStream, Split
from gnewton.data.tensors import Scaling
from gnewton.errors import InputError

_CPU = torch.device("cpu")


class LoaderSplit(Split):
    """Samples decoded by worker processes; batches are moved to the device and scaled there.

    A sampler hands each worker the index of a sample together with the seed of its augmentation, so that the
    batches do not depend on the number of workers, and skipped batches are never decoded.

    Args:
        files: the samples.
        scaling: from a uint8 batch to the network's input; its tensors say which device that is.
        workers: processes; 0: decode in this one.
        augment: whether :meth:`epoch` and :meth:`stream` augment.
        seed: decides the orders of :meth:`epoch`.
        title: the name of the split in messages.
    """

    def __init__(
        self, files: ImageFiles, scaling: Scaling, *, workers: int, augment: bool, seed: int, title: str
    ) -> None:
        self.files = files
        self.scaling = scaling
        self.workers = workers
        self.augment = augment
        self.seed = seed
        self.title = title

    def __len__(self) -> int:
        return len(self.files)

    def epoch(self, index: int, batch_size: int | None, *, skip: int = 0) -> Iterator[Batch]:
        """See :meth:`Split.epoch`. The set does not fit into one batch: ``batch_size`` must be a number."""
        size = self._size(batch_size)
        return self.load(self.tickets(skip * size, None, "epoch", self.seed, index), size, self.workers)

    def stream(self, batch_size: int | None, *, seed: int) -> LoaderStream:
        """See :meth:`Split.stream`. It has separate workers, a quarter as many.

        Raises:
            InputError: if ``batch_size`` exceeds the number of samples, as every batch has to be full.
        """
        size = self._size(batch_size)
        if size > len(self):
            raise InputError(f"batch_size={size}: must be <= {len(self)}, the samples of {self.title}")
        return LoaderStream(self, size, seed)

    def in_order(self, batch_size: int, limit: int | None = None) -> Iterator[Batch]:
        """See :meth:`Split.in_order`."""
        stop = len(self) if limit is None else min(limit, len(self))
        return self.load(((index, -1) for index in range(stop)), self._size(batch_size), self.workers)

    def tickets(self, start: int, stop: int | None, *parts: int | str) -> Iterator[Ticket]:
        """The samples at positions start … stop-1 of the order named by ``parts``, with their seeds."""
        order = shuffled(len(self), generator_for(_CPU, *parts)).tolist()
        for place in range(start, len(self) if stop is None else stop):
            yield order[place], mixed_seed(*parts, place) if self.augment else -1

    def load(self, tickets: Iterator[Ticket], size: int, workers: int) -> Iterator[Batch]:
        """Batches of ``size`` for the tickets, on the device."""
        on_gpu = self.device.type == "cuda"
        loader: DataLoader = DataLoader(
            self.files,
            batch_size=size,
            sampler=_Tickets(tickets),  # type: ignore[arg-type]
            num_workers=workers,
            collate_fn=stack,
            pin_memory=on_gpu,
        )
        try:
            for images, labels in loader:
                yield self._place(images), labels.to(self.device, non_blocking=on_gpu)
        except UnreadableImage as error:
            reason = error.reason
        else:
            return
        # raised out here, where the traceback that keeps the workers alive is gone
        raise InputError(reason)

    @property
    def device(self) -> torch.device:
        """Where batches are put."""
        return self.scaling.divisor.device

    def _place(self, images: Tensor) -> Tensor:
        return self.scaling(images.to(self.device, non_blocking=self.device.type == "cuda"))

    def _size(self, batch_size: int | None) -> int:
        if batch_size is None:
            raise InputError(f"batch_size=null: {self.title} is read in batches: must be >= 1")
        if batch_size < 1:
            raise InputError(f"batch_size={batch_size}: must be >= 1")
        return batch_size


class _Tickets(Sampler[Ticket]):
    """Passes an iterator to a DataLoader."""

    def __init__(self, tickets: Iterator[Ticket]) -> None:
        self._tickets = tickets

    def __iter__(self) -> Iterator[Ticket]:
        return self._tickets


class LoaderStream(BatchStream):
    """Full batches of a :class:`LoaderSplit` without end. Seeking starts the workers anew."""

    def __init__(self, split: LoaderSplit, size: int, seed: int) -> None:
        self._split = split
        self._size = size
        self._seed = seed
        self._position = 0
        self._batches: Iterator[Batch] | None = None

    @property
    def position(self) -> int:  # type: ignore[override]
        """Number of batches returned so far; assigning it seeks."""
        return self._position

    @position.setter
    def position(self, value: int) -> None:
        if value != self._position:
            self._position, self._batches = value, None

    def __next__(self) -> Batch:
        if self._batches is None:
            workers = -(-self._split.workers // 4)
            self._batches = self._split.load(
                _endless(self._split, self._size, self._seed, self._position), self._size, workers
            )
        batch = next(self._batches)
        self._position += 1
        return batch


def _endless(split: LoaderSplit, size: int, seed: int, position: int) -> Iterator[Ticket]:
    """Tickets of full batches from ``position`` on.

    Not a method of the stream: the cycle stream → loader → tickets → stream would keep the workers running
    until a garbage collection, perhaps in another worker, which may not stop them.
    """
    per_turn = len(split) // size
    turn, step = divmod(position, per_turn)
    while True:
        yield from split.tickets(step * size, per_turn * size, "stream", seed, turn)
        turn, step = turn + 1, 0
