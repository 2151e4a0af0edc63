"""The data set in a folder tree of images, one folder a class, read by a DataLoader in seekable orders."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import default_loader
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as TF

from gnewton.data import Batch, BatchStream, DataSet, Split
from gnewton.data.assemble import divide
from gnewton.data.dataset_options import ImageNet
from gnewton.data.tensors import Scaling, generator_for, mixed_seed, permutation
from gnewton.errors import InputError
from gnewton.options import user_path
from gnewton.tasks import Classification

_AREA = (0.08, 1.0)
_ASPECT = (3 / 4, 4 / 3)
_ATTEMPTS = 10

Ticket = tuple[int, int]
"""The request of a sampler: (index of the sample, seed of its augmentation; -1 for none)."""


class UnreadableImage(Exception):
    """An image file cannot be decoded. A DataLoader wraps the message in its worker's traceback."""

    @property
    def reason(self) -> str:
        """The message alone: the last line, without the class name that precedes it in a traceback."""
        return str(self).strip().splitlines()[-1].split(f"{type(self).__name__}: ")[-1]


class ImageFiles(Dataset[tuple[Tensor, int]]):
    """Images by path.

    Args:
        files: (path, label) pairs.
        size: side of the resulting square, in pixels.
        resize: length of the shorter side before the centre is cut out, where no random crop is taken.
        resized_crop: whether augmentation cuts a random area and resizes it.
        flip: whether augmentation mirrors half of the images.
    """

    def __init__(
        self, files: Sequence[tuple[str, int]], *, size: int, resize: int, resized_crop: bool, flip: bool
    ) -> None:
        self.files = files
        self.size = size
        self.resize = resize
        self.resized_crop = resized_crop
        self.flip = flip

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, ticket: Ticket) -> tuple[Tensor, int]:
        """The image (3, size, size) uint8 and its label.

        Raises:
            UnreadableImage: naming a file that is no readable image.
        """
        index, seed = ticket
        path, label = self.files[index]
        try:
            image = default_loader(path)
        except (OSError, ValueError, SyntaxError) as error:
            raise UnreadableImage(f"{path}: not a readable image: {error}") from error
        draw = random.Random(seed) if seed >= 0 else None
        if draw is not None and self.resized_crop:
            top, left, height, width = crop_box(image.height, image.width, draw)
            image = TF.resized_crop(
                image, top, left, height, width, [self.size, self.size], InterpolationMode.BILINEAR
            )
        else:
            image = TF.center_crop(TF.resize(image, [self.resize]), [self.size, self.size])
        if draw is not None and self.flip and draw.random() < 0.5:
            image = TF.hflip(image)
        return TF.pil_to_tensor(image), label


def crop_box(height: int, width: int, draw: random.Random) -> tuple[int, int, int, int]:
    """A random box (top, left, height, width): 8–100 % of the area, aspect ratio 3/4–4/3.

    The usual augmentation for ImageNet (Szegedy et al. 2015). For extreme shapes it falls back to the centre
    of the image, as torchvision does.
    """
    for _ in range(_ATTEMPTS):
        area = height * width * draw.uniform(*_AREA)
        aspect = math.exp(draw.uniform(math.log(_ASPECT[0]), math.log(_ASPECT[1])))
        box_width, box_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < box_width <= width and 0 < box_height <= height:
            return (
                draw.randint(0, height - box_height),
                draw.randint(0, width - box_width),
                box_height,
                box_width,
            )
    box_width = min(width, round(height * _ASPECT[1]))
    box_height = min(height, round(width / _ASPECT[0]))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


def stack(samples: Sequence[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    """A batch (N, 3, size, size) uint8 and (N,) int64."""
    return torch.stack([image for image, _ in samples]), torch.tensor([label for _, label in samples])


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
        order = permutation(len(self), generator_for(_CPU, *parts)).tolist()
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
            raise InputError(f"batch_size=null: must be a number >= 1, since {self.title} is read in batches")
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


_MEANS = (0.485, 0.456, 0.406)
_DEVIATIONS = (0.229, 0.224, 0.225)


def build_folders(options: ImageNet, device: torch.device, dtype: torch.dtype, seed: int) -> DataSet:
    """The three splits; validation is held out of ``train`` by ``options.split_seed``.

    Raises:
        InputError: if the tree is not there, or train and val have different classes.
    """
    root = user_path(options.root)
    train, test = _tree(root / "train", options.root), _tree(root / "val", options.root)
    if train.classes != test.classes:
        odd = sorted(set(train.classes) ^ set(test.classes))
        raise InputError(
            f"data.root={options.root}: train and val must have the same classes; one alone has {odd[0]}"
        )
    training, held_out = divide(len(train.samples), options.validation, options.subset, options.split_seed)
    scaling = _scaling(options.normalise, device, dtype)

    def split(part: str, files: list[tuple[str, int]]) -> LoaderSplit:
        crop = part == "train" and options.augment.resized_crop
        flip = part == "train" and options.augment.flip
        return LoaderSplit(
            ImageFiles(
                files,
                size=options.size,
                resize=options.resize,
                resized_crop=crop,
                flip=flip,
            ),
            scaling,
            workers=options.workers,
            augment=crop or flip,
            seed=seed,
            title=f"the {part} split of data={options.name}",
        )

    return DataSet(
        name=options.name,
        task=Classification(input_shape=(3, options.size, options.size), outputs=len(train.classes)),
        train=split("train", [train.samples[index] for index in training]),
        validation=split("validation", [train.samples[index] for index in held_out]),
        test=split("test", test.samples),
    )


def _tree(folder: Path, root: str) -> ImageFolder:
    if not folder.is_dir():
        raise InputError(
            f"data.root={root}: there is no folder {folder}, with a folder of images for each class"
        )
    try:
        return ImageFolder(str(folder))
    except (OSError, ValueError) as error:
        raise InputError(
            f"data.root={root}: {folder} must have a folder of images for each class: {error}"
        ) from error


def _scaling(normalise: bool, device: torch.device, dtype: torch.dtype) -> Scaling:
    means, deviations = (_MEANS, _DEVIATIONS) if normalise else ((0.0,) * 3, (1.0,) * 3)
    mean, deviation = (
        torch.tensor(entry, dtype=torch.float64)[:, None, None] for entry in (means, deviations)
    )
    work = torch.promote_types(dtype, torch.float32)
    return Scaling((255.0 * deviation).to(work).to(device), (-mean / deviation).to(work).to(device), dtype)
