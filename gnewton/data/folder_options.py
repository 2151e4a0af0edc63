"""The options of a folder tree of images, apart from how it is read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gnewton.data.recipe import DataRecipe
from gnewton.options import Role, option


@dataclass(kw_only=True)
class FolderAugment:
    """Random changes to training images."""

    resized_crop: bool
    flip: bool


@dataclass(kw_only=True)
class FolderOptions(DataRecipe):
    """Where the tree is, how it is divided, and what its images are made into."""

    root: str = option(role=Role.PLACE)
    validation: int = option(at_least=1)
    subset: int | None = option(at_least=1)
    split_seed: int = option(at_least=0, at_most=2**32 - 1)
    size: int = option(at_least=1)
    resize: int = option(at_least=1)
    normalise: bool
    augment: FolderAugment
    workers: int = option(at_least=0)

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Options that contradict each other."""
        if self.resize < self.size:
            yield "resize", f"must be >= size={self.size}, the square cut from the resized image"
