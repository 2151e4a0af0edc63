"""Any data set that somebody has saved as one .npz file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gnewton.data.npz_options import NpzOptions
from gnewton.data.recipe import DATA

if TYPE_CHECKING:
    import torch

    from gnewton.data.splits import DataSet


@DATA.register("npz")
@dataclass(kw_only=True)
class Npz(NpzOptions):
    """A file with the arrays x_train, y_train, x_test, y_test.

    Inputs: uint8 or float, (N, D) features, (N, H, W), (N, H, W, C) or (N, C, H, W) images. Integer targets
    (N,) are labels 0 … K-1; float targets (N,) or (N, d) make it a regression.
    """

    def build(self, device: torch.device, dtype: torch.dtype, seed: int) -> DataSet:
        """See :meth:`DataRecipe.build`."""
        from gnewton.data.memory.assemble import assemble
        from gnewton.data.memory.npz_file import channels_last, digest_of, label_remarks, read_npz

        stored = read_npz(self.path)
        arrays, remarks = channels_last(stored, self.layout)
        remarks = [f"data.path={self.path}: {text}" for text in (*remarks, *label_remarks(arrays))]
        return assemble(
            self,
            arrays,
            device=device,
            dtype=dtype,
            seed=seed,
            remarks=tuple(remarks),
            digest=digest_of(stored),
        )
