"""Recipes from the shipped YAML, and small arrays and splits to test with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf

from gnewton.data import Batch, DataSet
from gnewton.data.arrays import Arrays
from gnewton.data.dataset_options import DATA, DataRecipe
from gnewton.data.tensors import Augmenter, Scaling, TensorSplit
from gnewton.options import validate

CONFIGS = Path(__file__).parents[2] / "configs" / "data"
CPU = torch.device("cpu")


def recipe(name: str, **changes: Any) -> DataRecipe:
    """The recipe that configs/data/NAME.yaml describes, changed; dots are written as double underscores."""
    shipped = OmegaConf.load(CONFIGS / f"{name}.yaml")
    shipped.pop("defaults")
    config = OmegaConf.merge(OmegaConf.structured(DATA[name]), shipped)
    for key, value in changes.items():
        OmegaConf.update(config, key.replace("__", "."), value)
    built: DataRecipe = OmegaConf.to_object(config)
    return built


def build(name: str, *, dtype: torch.dtype = torch.float32, seed: int = 0, **changes: Any) -> DataSet:
    """The data set of :func:`recipe`, validated as the command does it."""
    settings = recipe(name, **changes)
    validate(settings, "data")
    return settings.build(CPU, dtype, seed)


def save_npz(path: Path, arrays: Arrays | None = None, **replaced: Any) -> Path:
    """A valid small .npz, with some arrays replaced; None leaves one out."""
    content = {**dict((arrays or colour_arrays()).items()), **replaced}
    np.savez(path, **{name: array for name, array in content.items() if array is not None})
    return path


def colour_arrays(train: int = 40, test: int = 10, classes: int = 4) -> Arrays:
    """Colour images of 6×5 pixels, every one of them different."""
    random = np.random.RandomState(1)
    return Arrays(
        random.randint(0, 256, (train, 6, 5, 3)).astype(np.uint8),
        np.arange(train) % classes,
        random.randint(0, 256, (test, 6, 5, 3)).astype(np.uint8),
        np.arange(test) % classes,
    )


def split(
    count: int = 23, *, seed: int = 5, augmenter: Augmenter | None = None, side: int = 4
) -> TensorSplit:
    """A split whose labels count the samples, so that an order can be read off its batches."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 2, side, side), generator=generator, dtype=torch.uint8)
    scaling = Scaling(torch.tensor(255.0), torch.tensor(0.0), torch.float32)
    return TensorSplit(
        images, torch.arange(count), scaling, augmenter=augmenter, seed=seed, title="the test case"
    )


def same(left: list[Batch], right: list[Batch]) -> bool:
    """Whether two series of batches are equal, bit by bit."""
    return len(left) == len(right) and all(
        torch.equal(a, b)
        for one, other in zip(left, right, strict=True)
        for a, b in zip(one, other, strict=True)
    )
