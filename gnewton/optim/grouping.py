"""Parameters in the order of a partition, and sums over each of its groups, on the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gnewton.errors import InputError
from gnewton.optim.trained import Trained, difference, trainable
from gnewton.partition import Partition

_MISSING = "no group holds {}; freeze it or add a group for it"


class Grouping:
    """The trainable parameters of a model, group by group.

    Args:
        model: the network.
        partition: S groups of its trainable parameters.

    Attributes:
        names, parameters: of each parameter, in the order of the partition.
        owner: number of the group of each parameter.

    Raises:
        InputError: if the partition belongs to another model, or the parameters lie on several devices.
    """

    def __init__(self, model: nn.Module, partition: Partition) -> None:
        named = trainable(model)
        if set(named) != set(partition.index):
            misfit = difference(set(named), set(partition.index), _MISSING)
            raise InputError(f"partition: it was built for another model: {misfit}")
        self.partition = partition
        self.names = [name for group in partition for name in group.parameters]
        self.parameters: list[Tensor] = [named[name] for name in self.names]
        self.owner = [partition.index[name] for name in self.names]
        devices = {p.device for p in self.parameters}
        if len(devices) > 1:
            raise InputError(
                f"model: its parameters must be on one device; found {sorted(map(str, devices))}"
            )
        self._trained = Trained(model, named, holder="partition", missing=_MISSING)
        self._owner = torch.tensor(self.owner, device=self.parameters[0].device)

    def check(self) -> None:
        """See to it that the model trains the parameters that it trained when this was built.

        Raises:
            InputError: if parameters have been unfrozen, frozen, added, removed or replaced since.
        """
        self._trained.check()

    def sums(self, values: Tensor) -> Tensor:
        """Sums over the parameters of each group of one value per parameter, (S,)."""
        return values.new_zeros(len(self.partition)).index_add_(0, self._owner, values)

    def norms(self, tensors: Sequence[Tensor]) -> Tensor:
        """‖P_s t‖ of tensors in the shapes of the parameters, float64, (S,)."""
        return self.sums(squares(tensors)).sqrt()

    def spread(self, values: Tensor) -> Tensor:
        """The value of its group for each parameter, (P,)."""
        return values[self._owner]


def squares(tensors: Sequence[Tensor]) -> Tensor:
    """‖·‖² of each tensor, float64, on the device."""
    return torch.stack(torch._foreach_norm([t.detach() for t in tensors])).double().square()


def dots(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """⟨a_i, b_i⟩ of each pair of tensors, float64, on the device."""
    pairs = zip(a, b, strict=True)
    return torch.stack([(x.detach() * y.detach()).sum(dtype=torch.float64) for x, y in pairs])
