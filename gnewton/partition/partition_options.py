"""The options of every partition: how the parameters of a model are split into groups."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gnewton.options import option
from gnewton.partition.groups import Partition
from gnewton.partition.schemes import complaint
from gnewton.registry import Registry

if TYPE_CHECKING:
    from torch import nn


@dataclass(kw_only=True)
class PartitionRecipe(ABC):
    """Options of one way to split a model. ``name`` is the choice ``partition=name``."""

    name: str

    @abstractmethod
    def build(self, model: nn.Module) -> Partition:
        """Split the trainable parameters of ``model``."""


PARTITIONS = Registry("partition", "gnewton.partition.partition_options", PartitionRecipe)  # type: ignore[type-abstract]


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
    """One group of all parameters."""

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


@PARTITIONS.register("blocks")
@dataclass(kw_only=True)
class Blocks(PartitionRecipe):
    """k blocks of consecutive layers, weights and biases apart."""

    k: int = option(2, help="number of blocks, at most the number of layers", at_least=1)

    def build(self, model: nn.Module) -> Partition:
        """See :meth:`Partition.blocks`."""
        return Partition.blocks(model, self.k)


@PARTITIONS.register("alternate")
@dataclass(kw_only=True)
class Alternate(PartitionRecipe):
    """Layers by their index modulo k, weights and biases apart."""

    k: int = option(2, help="number of classes of layers, at most the number of layers", at_least=1)

    def build(self, model: nn.Module) -> Partition:
        """See :meth:`Partition.alternate`."""
        return Partition.alternate(model, self.k)


@PARTITIONS.register("per_channel")
@dataclass(kw_only=True)
class PerChannel(PartitionRecipe):
    """One group per output channel or neuron."""

    def build(self, model: nn.Module) -> Partition:
        """See :meth:`Partition.per_channel`."""
        return Partition.per_channel(model)


@PARTITIONS.register("per_head")
@dataclass(kw_only=True)
class PerHead(PartitionRecipe):
    """One group per attention head, one per tensor for everything else."""

    def build(self, model: nn.Module) -> Partition:
        """See :meth:`Partition.per_head`."""
        return Partition.per_head(model)


@PARTITIONS.register("row_blocks")
@dataclass(kw_only=True)
class RowBlocks(PartitionRecipe):
    """One group per block of output channels of a layer."""

    rows: int = option(64, help="number of output channels in a block", at_least=1)

    def build(self, model: nn.Module) -> Partition:
        """See :meth:`Partition.row_blocks`."""
        return Partition.row_blocks(model, self.rows)


@PARTITIONS.register("patterns")
@dataclass(kw_only=True)
class Patterns(PartitionRecipe):
    """One group per regular expression."""

    patterns: list[str] = option(
        ["weight$", "bias$"],
        help="searched anywhere in a name; a parameter belongs to the first that is found",
    )
    rest: str | None = option("rest", help="group of what none matches; null: that is an error")

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """An empty list, and entries that are no regular expressions."""
        if not self.patterns:
            yield "patterns", "must hold at least one regular expression"
        for text in self.patterns:
            problem = complaint(text)
            if problem:
                yield "patterns", problem

    def build(self, model: nn.Module) -> Partition:
        """See :meth:`Partition.patterns`."""
        return Partition.patterns(model, self.patterns, self.rest)


@PARTITIONS.register("names")
@dataclass(kw_only=True)
class Names(PartitionRecipe):
    """Groups given as lists of parameter names."""

    groups: list[list[str]] = option(
        [],
        help="such as [[hidden1.weight,output.weight],[hidden1.bias,output.bias]]; every parameter "
        "exactly once",
    )

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """A list without any group."""
        if not self.groups:
            yield "groups", "must list the parameters of each group, such as [[a.weight,a.bias],[b.weight]]"

    def build(self, model: nn.Module) -> Partition:
        """See :meth:`Partition.from_names`."""
        return Partition.from_names(model, self.groups)
