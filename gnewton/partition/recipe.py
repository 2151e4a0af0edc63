"""The registry of partitions, and what each of them must offer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gnewton.partition.groups import Partition
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


PARTITIONS = Registry("partition", "gnewton.partition", PartitionRecipe)  # type: ignore[type-abstract]
