"""Recipes of the partitions into a chosen number of sets of layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gnewton.options import option
from gnewton.partition.groups import Partition
from gnewton.partition.recipe import PARTITIONS, PartitionRecipe

if TYPE_CHECKING:
    from torch import nn


@PARTITIONS.register("blocks")
@dataclass(kw_only=True)
class Blocks(PartitionRecipe):
    """k blocks of consecutive layers, weights and biases apart."""

    k: int = option(at_least=1)

    def build(self, model: nn.Module) -> Partition:
        """See :meth:`Partition.blocks`."""
        return Partition.blocks(model, self.k)


@PARTITIONS.register("alternate")
@dataclass(kw_only=True)
class Alternate(PartitionRecipe):
    """Layers by their index modulo k, weights and biases apart."""

    k: int = option(at_least=1)

    def build(self, model: nn.Module) -> Partition:
        """See :meth:`Partition.alternate`."""
        return Partition.alternate(model, self.k)
