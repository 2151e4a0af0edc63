"""Recipes of the partitions that follow from the model alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gnewton.partition.groups import Partition
from gnewton.partition.recipe import PARTITIONS, PartitionRecipe

if TYPE_CHECKING:
    from torch import nn


@PARTITIONS.register("per_tensor")
@dataclass(kw_only=True)
class PerTensor(PartitionRecipe):
    """One group per parameter tensor."""

    def build(self, model: nn.Module) -> Partition:
        """See :meth:`Partition.per_tensor`."""
        return Partition.per_tensor(model)


@PARTITIONS.register("single")
@dataclass(kw_only=True)
class Single(PartitionRecipe):
    """One group of everything."""

    def build(self, model: nn.Module) -> Partition:
        """See :meth:`Partition.single`."""
        return Partition.single(model)


@PARTITIONS.register("weights_biases")
@dataclass(kw_only=True)
class WeightsBiases(PartitionRecipe):
    """Weights, biases and the rest."""

    def build(self, model: nn.Module) -> Partition:
        """See :meth:`Partition.weights_biases`."""
        return Partition.weights_biases(model)


@PARTITIONS.register("by_layer")
@dataclass(kw_only=True)
class ByLayer(PartitionRecipe):
    """One group per module that owns parameters."""

    def build(self, model: nn.Module) -> Partition:
        """See :meth:`Partition.by_layer`."""
        return Partition.by_layer(model)
