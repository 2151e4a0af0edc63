"""Handwritten digits that come with scikit-learn: nothing to fetch, trains in seconds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gnewton.data.arrays import Arrays
from gnewton.data.in_memory import InMemoryRecipe
from gnewton.data.recipe import DATA
from gnewton.options import option

if TYPE_CHECKING:
    import torch

    from gnewton.data.splits import DataSet

_TOTAL = 1797


@DATA.register("digits")
@dataclass(kw_only=True)
class Digits(InMemoryRecipe):
    """1,797 grey 8×8 images in 10 classes, divided into training, validation and test by ``split_seed``."""

    side = 8

    test: int = option(at_least=1)

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """See :meth:`InMemoryRecipe.conflicts`."""
        yield from super().conflicts()
        left = _TOTAL - self.test - self.validation
        if left < 1:
            yield "test", f"must be < {_TOTAL} together with validation={self.validation}"
        elif self.subset is not None and self.subset > left:
            yield "subset", f"must be <= {left}, the samples beside test and validation"

    def build(self, device: torch.device, dtype: torch.dtype, seed: int) -> DataSet:
        """See :meth:`DataRecipe.build`. Inputs (1, 8, 8); pixels are stored as 0 … 16."""
        import numpy as np
        from sklearn.datasets import load_digits

        from gnewton.data.memory.assemble import assemble, divide

        digits = load_digits()
        images, labels = digits.images.astype(np.uint8), digits.target
        rest, test = divide(_TOTAL, self.test, None, self.split_seed)
        arrays = Arrays(images[rest], labels[rest], images[test], labels[test])
        return assemble(self, arrays, device=device, dtype=dtype, seed=seed, full_scale=16.0)
