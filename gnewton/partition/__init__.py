"""Partitions: the parameters of a model split into disjoint, covering groups."""

from gnewton.partition.choice import PartitionChoice, chosen_partition
from gnewton.partition.groups import Partition
from gnewton.partition.partition_options import PARTITIONS, PartitionRecipe
from gnewton.partition.slices import Slice

__all__ = ["PARTITIONS", "Partition", "PartitionChoice", "PartitionRecipe", "Slice", "chosen_partition"]
