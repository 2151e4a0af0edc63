"""Any data set that somebody has saved as one .npz file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gnewton.data.in_memory import InMemoryRecipe
from gnewton.data.recipe import DATA

if TYPE_CHECKING:
    import torch

    from gnewton.data.splits import DataSet


@DATA.register("npz")
@dataclass(kw_only=True)
class Npz(InMemoryRecipe):
    """A file with the arrays x_train, y_train, x_test, y_test.

    Inputs: uint8 or float, (N, D) features, (N, H, W) or (N, H, W, C) images. Integer targets (N,) are
    labels 0 … K-1; float targets (N,) or (N, d) make it a regression.
    """

    path: str

    def build(self, device: torch.device, dtype: torch.dtype, seed: int) -> DataSet:
        """See :meth:`DataRecipe.build`."""
        from gnewton.data.memory.assemble import assemble
        from gnewton.data.memory.npz_file import read_npz

        return assemble(self, read_npz(self.path), device=device, dtype=dtype, seed=seed)
