"""The batched augmentation against one sample, one pixel at a time."""

from __future__ import annotations

import pytest
import torch

from gnewton.data.tensors import Augmenter, CropDraws


def slow_augment(image: torch.Tensor, row: int, column: int, mirrored: bool, padding: int) -> torch.Tensor:
    """Crop of the zero-padded image (C, H, W), then a flip: the definition, pixel by pixel."""
    channels, height, width = image.shape
    cropped = torch.zeros_like(image)
    for channel in range(channels):
        for i in range(height):
            for j in range(width):
                source = i + row - padding, j + column - padding
                if 0 <= source[0] < height and 0 <= source[1] < width:
                    cropped[channel, i, j] = image[channel, source[0], source[1]]
    return (
        torch.stack([torch.stack([line.flip(0) for line in plane]) for plane in cropped])
        if mirrored
        else cropped
    )


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("padding", [0, 1, 3])
@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 5, 7)])
def test_a_batch_equals_its_samples_one_by_one(shape, padding, flip, dtype):
    generator = torch.Generator().manual_seed(padding)
    images = torch.randint(1, 256, (40, *shape), generator=generator).to(dtype)
    augmenter = Augmenter(padding, flip)
    draws = augmenter.draw(40, generator)
    expected = torch.stack(
        [
            slow_augment(image, int(row), int(column), bool(mirrored), padding)
            for image, row, column, mirrored in zip(images, *draws, strict=True)
        ]
    )
    result = augmenter.apply(images, draws)
    assert result.dtype == dtype
    assert torch.equal(result, expected)
    assert draws.mirrored.any() == flip


def test_draws_cover_every_place_evenly():
    draws = Augmenter(2, True).draw(50_000, torch.Generator().manual_seed(0))
    places = torch.bincount(draws.rows * 5 + draws.columns, minlength=25)
    assert ((places - 2000).abs() < 6 * 2000**0.5).all()
    assert abs(int(draws.mirrored.sum()) - 25_000) < 6 * 12_500**0.5


def test_a_part_of_the_draws_belongs_to_its_samples():
    draws = Augmenter(1, True).draw(10, torch.Generator().manual_seed(0))
    assert all(torch.equal(part, whole[3:7]) for part, whole in zip(draws.part(3, 7), draws, strict=True))


def test_without_shift_and_flip_nothing_changes():
    images = torch.arange(2 * 3 * 4 * 5, dtype=torch.float32).view(2, 3, 4, 5)
    draws = CropDraws(torch.full((2,), 2), torch.full((2,), 2), torch.zeros(2, dtype=torch.bool))
    assert torch.equal(Augmenter(2, True).apply(images, draws), images)
