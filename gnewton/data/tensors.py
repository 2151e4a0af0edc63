"""A split held in tensors on the device, its orders as pure functions of a seed, and the endless stream."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import _pytree as pytree

from gnewton.data import Batch, BatchStream, Split
from gnewton.errors import InputError


def mixed_seed(*parts: int | str) -> int:
    """A 63-bit seed that depends on every part: equal parts give equal seeds on every machine.

    Adding seed and epoch would let run 1 at epoch 0 repeat run 0 at epoch 1; hashing keeps them apart.
    """
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator_for(device: torch.device, *parts: int | str) -> torch.Generator:
    """A generator on ``device`` seeded by :func:`mixed_seed` of ``parts``."""
    return torch.Generator(device=device).manual_seed(mixed_seed(*parts))


def permutation(count: int, generator: torch.Generator) -> Tensor:
    """A random permutation of 0 … count-1, (count,) int64, on the device of ``generator``."""
    return torch.randperm(count, generator=generator, device=generator.device)


@dataclass(frozen=True)
class Scaling:
    """stored value → network input: x / divisor + offset, per channel or feature.

    Attributes:
        divisor: broadcastable to one stored sample; full scale × deviation.
        offset: broadcastable likewise; − mean / deviation.
        dtype: of the result. Half precisions are computed in ``divisor``'s float32 and rounded once.
    """

    divisor: Tensor
    offset: Tensor
    dtype: torch.dtype

    def __call__(self, stored: Tensor) -> Tensor:
        """Scale a batch (N, …)."""
        # two passes take a third of the time of addcdiv, which is slow where it broadcasts
        return (stored.to(self.divisor.dtype) / self.divisor).add_(self.offset).to(self.dtype)


class _Order(NamedTuple):
    """One pass over the split: the sample at each position, and its augmentation."""

    samples: Tensor
    draws: CropDraws | None


class TensorSplit(Split):
    """Samples kept on the device as they were stored (uint8 pixels, or float features).

    A batch is gathered by index, augmented and scaled, all on the device and without synchronisation. Order
    and augmentation belong to the position in the epoch, so they do not depend on the batch size.

    Args:
        inputs: (N, C, H, W) uint8, (N, …) floats, or (N, T) int64 tokens; or a tuple or dict of such tensors.
        targets: (N,) or (N, T) int64 labels or (N, d) floats; None: the target is the input, flattened.
        scaling: from a stored batch to the network's input, such as a :class:`Scaling`; None: they are equal.
        augmenter: applied to the batches of :meth:`epoch` and :meth:`stream`, never to :meth:`in_order`.
        seed: decides the orders of :meth:`epoch`.
        title: the name of the split in messages, such as ``"the train split of data=mnist"``.

    Raises:
        InputError: if the tensors differ in length.
    """

    def __init__(
        self,
        inputs: Any,
        targets: Tensor | None,
        scaling: Callable[[Any], Any] | None = None,
        *,
        augmenter: Augmenter | None = None,
        seed: int,
        title: str,
    ) -> None:
        tensors: list[Tensor] = [
            tensor for tensor in pytree.tree_leaves((inputs, targets)) if tensor is not None
        ]
        lengths = sorted({len(tensor) for tensor in tensors})
        if len(lengths) > 1:
            raise InputError(f"{title}: its tensors hold {lengths} samples; all must hold the same number")
        self._samples, self._device = len(tensors[0]), tensors[0].device
        self.inputs = inputs
        self.targets = targets
        self.scaling = scaling
        self.augmenter = augmenter
        self.seed = seed
        self.title = title

    def __len__(self) -> int:
        return self._samples

    def epoch(self, index: int, batch_size: int | None, *, skip: int = 0) -> Iterator[Batch]:
        """See :meth:`Split.epoch`."""
        size = self._size(batch_size)
        return self._epoch(index, size, skip)

    def _epoch(self, index: int, size: int, skip: int) -> Iterator[Batch]:
        order = self.order("epoch", self.seed, index)
        for start in range(skip * size, len(self), size):
            yield self.batch(order, start, min(start + size, len(self)))

    def stream(self, batch_size: int | None, *, seed: int) -> TensorStream:
        """See :meth:`Split.stream`. Its batches are augmented like those of training.

        Raises:
            InputError: if ``batch_size`` exceeds the number of samples, as every batch has to be full.
        """
        size = self._size(batch_size)
        if size > len(self):
            raise InputError(f"batch_size={size}: must be <= {len(self)}, the samples of {self.title}")
        return TensorStream(self, size, seed)

    def in_order(self, batch_size: int, limit: int | None = None) -> Iterator[Batch]:
        """See :meth:`Split.in_order`."""
        size = self._size(batch_size)
        stop = len(self) if limit is None else min(limit, len(self))
        return (self._finish(slice(at, min(at + size, stop)), None) for at in range(0, stop, size))

    def order(self, *parts: int | str) -> _Order:
        """The order and augmentation named by ``parts``."""
        generator = generator_for(self._device, *parts)
        samples = permutation(len(self), generator)
        return _Order(samples, self.augmenter.draw(len(self), generator) if self.augmenter else None)

    def batch(self, order: _Order, start: int, stop: int) -> Batch:
        """The samples at positions start … stop-1 of ``order``."""
        return self._finish(order.samples[start:stop], order.draws and order.draws.part(start, stop))

    def _finish(self, where: Tensor | slice, draws: CropDraws | None) -> Batch:
        stored = pytree.tree_map(lambda tensor: _rows(tensor, where), self.inputs)
        if self.augmenter is not None and draws is not None:
            stored = self.augmenter.apply(stored, draws)
        inputs = stored if self.scaling is None else self.scaling(stored)
        return inputs, inputs.flatten(1) if self.targets is None else _rows(self.targets, where)

    def _size(self, batch_size: int | None) -> int:
        if batch_size is not None and batch_size < 1:
            raise InputError(f"batch_size={batch_size}: must be >= 1")
        return len(self) if batch_size is None else batch_size


def _rows(tensor: Tensor, where: Tensor | slice) -> Tensor:
    """Some rows of a tensor; ``index_select`` copies whole rows, which indexing does not."""
    return tensor[where] if isinstance(where, slice) else tensor.index_select(0, where)


class TensorStream(BatchStream):
    """Full batches of a :class:`TensorSplit` without end: pass after pass, each in a new order."""

    def __init__(self, split: TensorSplit, size: int, seed: int) -> None:
        self.position = 0
        self._split = split
        self._size = size
        self._seed = seed
        self._order: tuple[int, _Order] | None = None

    def __next__(self) -> Batch:
        turn, step = divmod(self.position, len(self._split) // self._size)
        if self._order is None or self._order[0] != turn:
            self._order = turn, self._split.order("stream", self._seed, turn)
        self.position += 1
        return self._split.batch(self._order[1], step * self._size, (step + 1) * self._size)


class CropDraws(NamedTuple):
    """The random choices for consecutive samples, one entry each.

    Attributes:
        rows: (N,) int64, first row of the crop in the padded image, 0 … 2·padding.
        columns: (N,) int64, its first column.
        mirrored: (N,) bool, whether the crop is then flipped left to right.
    """

    rows: Tensor
    columns: Tensor
    mirrored: Tensor

    def part(self, start: int, stop: int) -> CropDraws:
        """The choices of the samples start … stop-1."""
        return CropDraws(self.rows[start:stop], self.columns[start:stop], self.mirrored[start:stop])


@dataclass(frozen=True)
class Augmenter:
    """Crop at a random place of the image padded by zeros, then flip with probability one half.

    Attributes:
        crop_padding: zeros added on each side, in pixels; 0: no crop.
        flip: whether half of the images are mirrored.
    """

    crop_padding: int
    flip: bool

    def draw(self, count: int, generator: torch.Generator) -> CropDraws:
        """Random choices for ``count`` samples, on the device of ``generator``."""
        device = generator.device
        places = torch.randint(
            2 * self.crop_padding + 1, (2, count), generator=generator, device=device, dtype=torch.int64
        )
        coin = torch.randint(2, (count,), generator=generator, device=device, dtype=torch.int64)
        return CropDraws(
            places[0], places[1], (coin == 1) if self.flip else torch.zeros_like(coin, dtype=torch.bool)
        )

    def apply(self, images: Tensor, draws: CropDraws) -> Tensor:
        """Augment images (N, C, H, W) of any dtype; returns the same shape and dtype.

        Output pixel (i, j) is padded pixel (row + i, column + j), with j counted from the right where the
        image is mirrored: one gather over the flattened padded images does both.
        """
        count, channels, height, width = images.shape
        padding = self.crop_padding
        padded = F.pad(images, (padding, padding, padding, padding))
        down = torch.arange(height, device=images.device)
        across = torch.arange(width, device=images.device)
        across = torch.where(draws.mirrored[:, None], width - 1 - across, across)
        rows = draws.rows[:, None] + down
        columns = draws.columns[:, None] + across
        place = rows[:, :, None] * (width + 2 * padding) + columns[:, None, :]
        index = place.reshape(count, 1, height * width).expand(count, channels, height * width)
        return padded.flatten(2).gather(2, index).view(count, channels, height, width)
