"""The choice ``data=none``: minimise a function that needs no samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gnewton.data.recipe import DATA, DataRecipe
from gnewton.options import option

if TYPE_CHECKING:
    import torch

    from gnewton.data.splits import DataSet


@DATA.register("none")
@dataclass(kw_only=True)
class NoData(DataRecipe):
    """An epoch is a number of steps; every batch is a pair of tensors without numbers."""

    steps_per_epoch: int = option(at_least=1)

    def build(self, device: torch.device, dtype: torch.dtype, seed: int) -> DataSet:
        """See :meth:`DataRecipe.build`. The three splits are the same; ``seed`` decides nothing."""
        from gnewton.data.memory.empty import EmptySplit
        from gnewton.data.splits import DataSet
        from gnewton.tasks import Minimisation

        split = EmptySplit(self.steps_per_epoch, device, dtype)
        task = Minimisation(input_shape=(), outputs=1)
        return DataSet(self.name, task, train=split, validation=split, test=split)
