"""Parameters in the order of a partition, and sums over each of its groups, on the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gnewton.errors import InputError
from gnewton.options import listing
from gnewton.partition import Partition


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
        named = _trainable(model)
        if set(named) != set(partition.index):
            difference = _difference(set(named), set(partition.index))
            raise InputError(f"partition: it was built for another model: {difference}")
        self._model = model
        self.partition = partition
        self.names = [name for group in partition for name in group.parameters]
        self.parameters: list[Tensor] = [named[name] for name in self.names]
        self.owner = [partition.index[name] for name in self.names]
        devices = {p.device for p in self.parameters}
        if len(devices) > 1:
            raise InputError(
                f"model: its parameters must be on one device; found {sorted(map(str, devices))}"
            )
        self._identities = {id(p) for p in self.parameters}
        self._owner = torch.tensor(self.owner, device=self.parameters[0].device)

    def check(self) -> None:
        """See to it that the model trains the parameters that it trained when this was built.

        Raises:
            InputError: if parameters have been unfrozen, frozen, added, removed or replaced since.
        """
        trained = {id(p) for p in self._model.parameters() if p.requires_grad}
        if trained == self._identities:
            return
        named = _trainable(self._model)
        if set(named) == set(self.names):
            replaced = [n for n, p in zip(self.names, self.parameters, strict=True) if named[n] is not p]
            raise InputError(
                f"partition: the model has other tensors now as {listing(replaced)}; build a new optimizer"
            )
        raise InputError(
            "partition: the model no longer trains what it was built for: "
            + _difference(set(named), set(self.names))
        )

    def sums(self, values: Tensor) -> Tensor:
        """Sums over the parameters of each group of one value per parameter, (S,)."""
        return values.new_zeros(len(self.partition)).index_add_(0, self._owner, values)

    def norms(self, tensors: Sequence[Tensor]) -> Tensor:
        """‖P_s t‖ of tensors in the shapes of the parameters, float64, (S,)."""
        return self.sums(squares(tensors)).sqrt()

    def spread(self, values: Tensor) -> list[Tensor]:
        """The value of its group for each parameter, as scalar tensors."""
        return list(values[self._owner].unbind())


def _trainable(model: nn.Module) -> dict[str, Tensor]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _difference(trained: set[str], grouped: set[str]) -> str:
    """What the model trains and no group holds, and the other way round."""
    parts = []
    if trained - grouped:
        parts.append(f"no group holds {listing(sorted(trained - grouped))}; freeze it or add a group for it")
    if grouped - trained:
        parts.append(f"it has no trainable {listing(sorted(grouped - trained))}")
    return "; ".join(parts)


def squares(tensors: Sequence[Tensor]) -> Tensor:
    """‖·‖² of each tensor, float64, on the device."""
    return torch.stack(torch._foreach_norm([t.detach() for t in tensors])).double().square()


def dots(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """⟨a_i, b_i⟩ of each pair of tensors, float64, on the device."""
    pairs = zip(a, b, strict=True)
    return torch.stack([(x.detach() * y.detach()).sum(dtype=torch.float64) for x, y in pairs])
