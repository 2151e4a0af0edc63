"""Recipes of the partitions spelled out by the user, by patterns or by names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gnewton.options import option
from gnewton.partition import schemes
from gnewton.partition.groups import Partition
from gnewton.partition.recipe import PARTITIONS, PartitionRecipe

if TYPE_CHECKING:
    from torch import nn


@PARTITIONS.register("patterns")
@dataclass(kw_only=True)
class Patterns(PartitionRecipe):
    """One group per regular expression."""

    patterns: list[str] = option()
    rest: str | None = option()

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """What is no regular expression, and a list without any."""
        if not self.patterns:
            yield "patterns", "must hold at least one regular expression"
        for text in self.patterns:
            complaint = schemes.complaint(text)
            if complaint:
                yield "patterns", complaint

    def build(self, model: nn.Module) -> Partition:
        """See :meth:`Partition.patterns`."""
        return Partition.patterns(model, self.patterns, self.rest)


@PARTITIONS.register("names")
@dataclass(kw_only=True)
class Names(PartitionRecipe):
    """Groups given as lists of parameter names."""

    groups: list[list[str]] = option()

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """A list without any group."""
        if not self.groups:
            yield "groups", "must list the parameters of each group, such as [[a.weight,a.bias],[b.weight]]"

    def build(self, model: nn.Module) -> Partition:
        """See :meth:`Partition.from_names`."""
        return Partition.from_names(model, self.groups)
