"""The images of a folder tree, cut to size; random crop and flip are a function of a seed."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets.folder import default_loader
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as TF

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
