"""The options that every set held in memory has."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from gnewton.data.recipe import DataRecipe
from gnewton.options import option

LABEL = "label"
INPUT = "input"


@dataclass(kw_only=True)
class Augment:
    """Random changes to training images; the same options for every set of images."""

    crop_padding: int = option(at_least=0)
    flip: bool


@dataclass(kw_only=True)
class InMemoryRecipe(DataRecipe):
    """Samples on the device, the validation part held out of the training part by ``split_seed``."""

    samples: ClassVar[int | None] = None
    """Samples to divide into training and validation (and test, where the set has none of its own)."""
    side: ClassVar[int | None] = None
    """Height and width of its images in pixels, where that is known before reading them."""

    validation: int = option(at_least=1)
    subset: int | None = option(at_least=1)
    split_seed: int = option(at_least=0, at_most=2**32 - 1)
    normalise: bool
    target: str = option(choices=(LABEL, INPUT))
    augment: Augment

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Options that contradict each other, or the size of the set."""
        if self.target == INPUT and self.normalise:
            yield "normalise", f"must be false with target={INPUT}, whose pixels stay in [0, 1]"
        if self.side is not None and self.augment.crop_padding >= self.side:
            yield "augment.crop_padding", f"must be < {self.side}, the side of an image in pixels"
        if self.samples is None:
            return
        left = self.samples - self.validation
        if left < 1:
            yield "validation", f"must be < {self.samples}, the samples to divide"
        elif self.subset is not None and self.subset > left:
            yield "subset", f"must be <= {left}, the training samples beside the validation split"
