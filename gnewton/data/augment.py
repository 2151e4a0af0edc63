"""Random crops and horizontal flips of a whole batch at once, by one gather on the device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


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
