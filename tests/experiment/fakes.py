"""Stand-ins for the data sets that have to be fetched: the right shapes and types, made-up pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gnewton.data.arrays import Arrays

SHAPES = {"mnist": (28, 28), "fashion_mnist": (28, 28), "cifar10": (32, 32, 3), "cifar100": (32, 32, 3)}


def load(name: str, root: str | Path) -> Arrays:
    """In place of the loader of public sets: 90 training and 20 test images."""
    random = np.random.default_rng(0)
    shape, classes = SHAPES[name], 100 if name == "cifar100" else 10

    def part(size: int) -> tuple[np.ndarray, np.ndarray]:
        pixels = random.integers(0, 256, (size, *shape), dtype=np.uint8)
        labels = random.integers(0, classes, size, dtype=np.uint8)
        labels[:2] = (0, classes - 1)
        return pixels, labels

    return Arrays(*part(max(90, classes)), *part(20))


def folder_tree(root: Path) -> Path:
    """Two classes of small images under train/ and val/."""
    random = np.random.default_rng(0)
    for part, count in (("train", 6), ("val", 2)):
        for name in ("cat", "dog"):
            (root / part / name).mkdir(parents=True)
            for index in range(count):
                pixels = random.integers(0, 256, (40, 48, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{index}.png")
    return root


@pytest.fixture
def no_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the public sets by made-up ones."""
    monkeypatch.setattr("gnewton.data.fetch.load", load)
