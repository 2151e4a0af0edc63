"""A model whose parameters are sums of copies, so that one summary sees several directions at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

from gnewton.partition import Partition
from gnewton.partition.groups import Group
from gnewton.summary.carrier import Carrier
from gnewton.wrappers import plain_name


class Stack(Carrier):
    """θ = θ_1 + θ_2 + … + θ_k, with θ_1 the parameters of ``base`` and the other copies zero.

    Along the direction that moves copy j by ε_j u_j the model moves by Σ_j ε_j u_j. A partition whose groups
    are the pairs (group s, copy j) therefore has the derivatives along all P_s u_j as its summary, exactly.

    Args:
        base: the network, which stays as it is.
        copies: k >= 2.
    """

    def __init__(self, base: nn.Module, copies: int) -> None:
        super().__init__(base)
        self._names = [name for name, p in base.named_parameters() if p.requires_grad]
        self._order = {plain_name(base, name): i for i, name in enumerate(self._names)}
        zeros = [p.new_zeros(()).expand(p.shape) for p in base.parameters() if p.requires_grad]
        self.others = nn.ModuleList(
            [nn.ParameterList([nn.Parameter(zero) for zero in zeros]) for _ in range(copies - 1)]
        )

    def forward(self, function: Callable[[nn.Module], Any]) -> Any:
        """What ``function`` makes of the base at the sum of the copies."""
        values: dict[str, Tensor] = dict(self.base.named_parameters())
        moved = {}
        for i, name in enumerate(self._names):
            total = values[name]
            for other in self.others:
                total = total + other[i]  # type: ignore[index]
            moved[f"base.{name}"] = total
        return functional_call(Carrier(self.base), moved, (function,))

    def name(self, parameter: str, copy: int) -> str:
        """What a copy of a parameter of the base is called here."""
        return f"base.{parameter}" if copy == 0 else f"others.{copy - 1}.{self._order[parameter]}"

    def partition(self, partition: Partition, labels: tuple[str, ...]) -> Partition:
        """The pairs of a group and a copy, copies of one group next to each other, called ``group:label``."""
        names = iter(entries(partition, labels))
        return Partition(
            Group(next(names), tuple(self.name(p, j) for p in group.parameters), group.size)
            for group in partition
            for j in range(len(labels))
        )


def entries(partition: Partition, labels: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the pairs of a group and a direction; those of the groups where there is one direction."""
    if len(labels) == 1:
        return partition.names
    return tuple(f"{name}:{label}" for name in partition.names for label in labels)
