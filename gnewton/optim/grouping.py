"""The parameters that an optimizer steps: their groups, a check for changes, and one more group."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gnewton.errors import InputError
from gnewton.options import listing
from gnewton.partition import Partition
from gnewton.wrappers import named_parameters

_MISSING = "no group holds {}; freeze it or add a group for it"
_KEYS = ("params", "name", "lr")


class Grouping:
    """The trainable parameters of a model, group by group.

    Args:
        model: the network.
        partition: S groups of its trainable parameters.

    Attributes:
        names, parameters: the names and the parameters, in the order of the partition.
        pieces: of each parameter, the axis along which it is divided among groups, None where it is whole.
        owner: index of the group of each piece: of a whole parameter, or of an index along that axis.

    Raises:
        InputError: if the partition belongs to another model, or the parameters lie on several devices.
    """

    def __init__(self, model: nn.Module, partition: Partition) -> None:
        named = trainable(model)
        if set(named) != set(partition.parameters):
            misfit = difference(set(named), set(partition.parameters), _MISSING)
            raise InputError(f"partition: it was built for another model: {misfit}")
        self.partition = partition
        self.names = list(partition.parameters)
        self.parameters: list[Tensor] = [named[name] for name in self.names]
        slicings = [partition.slicing.get(name) for name in self.names]
        self.pieces = [None if slicing is None else slicing.axis for slicing in slicings]
        owners = [
            (partition.index[name],) if slicing is None else slicing.owners
            for name, slicing in zip(self.names, slicings, strict=True)
        ]
        self.owner = [s for part in owners for s in part]
        self._counts = [len(part) for part in owners]
        self._views = [
            () if slicing is None else slicing.view(p.dim())
            for slicing, p in zip(slicings, self.parameters, strict=True)
        ]
        check_one_device(self.parameters)
        self._trained = Trained(model, named, holder="partition", missing=_MISSING)
        self._owner = torch.tensor(self.owner, device=self.parameters[0].device)

    @property
    def named(self) -> dict[str, Tensor]:
        """The parameters by name, in the order of the partition."""
        return dict(zip(self.names, self.parameters, strict=True))

    def param_groups(self) -> list[dict[str, Any]]:
        """The groups as torch's optimizers take them, each with its ``rate``.

        torch has no groups of slices: where there are some, all parameters are in a single entry.
        """
        if self.partition.sliced:
            return [{"params": list(self.parameters), "name": "slices", "rate": 0.0}]
        named = self.named
        return [
            {"params": [named[name] for name in group.parameters], "name": group.name, "rate": 0.0}
            for group in self.partition
        ]

    def check(self) -> None:
        """Check that the model still trains the parameters that it trained when this was built.

        Raises:
            InputError: if parameters have been unfrozen, frozen, added, removed or replaced since.
        """
        self._trained.check()

    def sums(self, values: Tensor) -> Tensor:
        """Sums over each group of one value per piece, (S,)."""
        return values.new_zeros(len(self.partition)).index_add_(0, self._owner, values)

    def norms(self, tensors: Sequence[Tensor]) -> Tensor:
        """‖P_s t‖ for tensors in the shapes of the parameters, float64, (S,)."""
        if not self.partition.sliced:
            return self.sums(squares(tensors)).sqrt()
        parts = zip(tensors, self.pieces, strict=True)
        return self.sums(torch.cat([_lengths(t.detach(), axis) for t, axis in parts]).square()).sqrt()

    def dots(self, a: Sequence[Tensor], b: Sequence[Tensor], factors: Tensor) -> Tensor:
        """Σ_i f_i ⟨P_s a_i, P_s b_i⟩ over the parameters i with factors f, float64, (S,)."""
        if not self.partition.sliced:
            return self.sums(factors * dots(a, b))
        parts = zip(a, b, self.pieces, factors.unbind(), strict=True)
        return self.sums(torch.cat([f * _pieces(x.detach() * y.detach(), axis) for x, y, axis, f in parts]))

    def spread(self, values: Tensor) -> Tensor:
        """The value of its group for each piece."""
        return values[self._owner]

    def broadcast(self, values: Tensor) -> list[Tensor]:
        """The values of the groups, (S,), as a tensor for each parameter that is broadcast over it."""
        parts = self.spread(values).split(self._counts)
        return [part.view(shape) for part, shape in zip(parts, self._views, strict=True)]


def _pieces(terms: Tensor, axis: int | None) -> Tensor:
    """The sum over each piece, float64."""
    if axis is None:
        return terms.sum(dtype=torch.float64).reshape(1)
    return terms.sum([i for i in range(terms.dim()) if i != axis], dtype=torch.float64).reshape(-1)


def _lengths(t: Tensor, axis: int | None) -> Tensor:
    """The length of each piece, float64."""
    rest = [i for i in range(t.dim()) if i != axis]
    if axis is not None and not rest:
        return t.abs().double()
    norm = torch.linalg.vector_norm(t) if axis is None else torch.linalg.vector_norm(t, dim=rest)
    return norm.double().reshape(-1)


def squares(tensors: Sequence[Tensor]) -> Tensor:
    """‖·‖² of each tensor, float64, on the device."""
    return torch.stack(torch._foreach_norm([t.detach() for t in tensors])).double().square()


def dots(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """⟨a_i, b_i⟩ of each pair of tensors, float64, on the device."""
    pairs = zip(a, b, strict=True)
    return torch.stack([(x.detach() * y.detach()).sum(dtype=torch.float64) for x, y in pairs])


class Trained:
    """The parameters that a model trained when an optimizer was built, to notice changes.

    Args:
        model: the network.
        parameters: the parameters that the optimizer steps, by name.
        holder: the subject of error messages, such as the name of the optimizer.
        missing: message about parameters that only the model trains, with ``{}`` for their names; None: such
            parameters are allowed.
    """

    def __init__(
        self, model: nn.Module, parameters: Mapping[str, Tensor], *, holder: str, missing: str | None
    ) -> None:
        self._model = model
        self._parameters = dict(parameters)
        self._identities = {id(p) for p in parameters.values()}
        self._holder = holder
        self._missing = missing

    def check(self) -> None:
        """Check that the model trains these parameters and, unless allowed, no others.

        Raises:
            InputError: if it does not.
        """
        now = {id(p) for p in self._model.parameters() if p.requires_grad}
        if now == self._identities or (self._missing is None and now >= self._identities):
            return
        named = trainable(self._model)
        if set(named) == set(self._parameters):
            replaced = [name for name, p in self._parameters.items() if named[name] is not p]
            raise InputError(
                f"{self._holder}: the model has other tensors now as {listing(replaced)}; "
                "build a new optimizer"
            )
        raise InputError(
            f"{self._holder}: the model no longer trains what it was built for: "
            + difference(set(named), set(self._parameters), self._missing)
        )


def trainable(model: nn.Module) -> dict[str, Tensor]:
    """The trainable parameters of a model, by name."""
    return {name: p for name, p in named_parameters(model).items() if p.requires_grad}


def named_targets(model: nn.Module, pairs: Iterable[tuple[str, Tensor]] | None) -> dict[str, Tensor]:
    """The tensors that an optimizer steps, by the name of the parameter that each is or replaces.

    Args:
        model: the network.
        pairs: (name, tensor) pairs; None: the trainable parameters themselves.

    Raises:
        InputError: if a tensor fits no parameter, there is none, or they lie on several devices.
    """
    if pairs is None:
        named = trainable(model)
    else:
        parameters, named = named_parameters(model), dict(pairs)
        for name, tensor in named.items():
            if name not in parameters or parameters[name].shape != tensor.shape:
                raise InputError(
                    f"params: the model has no parameter '{name}' of shape {tuple(tensor.shape)}"
                )
    if not named:
        raise InputError("model: it has no trainable parameters")
    check_one_device(named.values())
    return named


def check_one_device(parameters: Iterable[Tensor]) -> None:
    """Check that all parameters are on one device.

    Raises:
        InputError: if they are not.
    """
    devices = sorted({str(p.device) for p in parameters})
    if len(devices) > 1:
        raise InputError(f"model: its parameters must be on one device; found {devices}")


def difference(trained: set[str], held: set[str], missing: str | None) -> str:
    """A message about parameters that only the model trains, or only the optimizer holds."""
    parts = []
    if missing is not None and trained - held:
        parts.append(missing.format(listing(sorted(trained - held))))
    if held - trained:
        parts.append(f"it has no trainable {listing(sorted(held - trained))}")
    return "; ".join(parts)


@dataclass(frozen=True)
class Growth:
    """A checked new group.

    Attributes:
        partition: the old groups and the new one behind them.
        named: (name, parameter) pairs of the new one, in model order.
        lr: λ_1 of the new group.
    """

    partition: Partition
    named: list[tuple[str, Tensor]]
    lr: float

    @property
    def name(self) -> str:
        """The name of the new group."""
        return self.partition.names[-1]


def growth(model: nn.Module, partition: Partition, param_group: Mapping[str, Any], lr: float) -> Growth:
    """Check a group that is to be added.

    Args:
        model: the network.
        partition: the groups so far.
        param_group: ``params``, a parameter, or several, or (name, parameter) pairs; optionally ``name``, by
            default that of the first parameter, and ``lr``.
        lr: the default λ_1.

    Raises:
        InputError: for an unknown key, a tensor that is no parameter of the model, is frozen, in a group
            already or on another device, or an λ_1 out of range.
    """
    unknown = [key for key in param_group if key not in _KEYS]
    if unknown:
        raise InputError(f"add_param_group {unknown[0]}=…: must be one of {', '.join(_KEYS)}")
    lr = param_group.get("lr", lr)
    if not (isinstance(lr, (int, float)) and 0 < lr < math.inf):
        raise InputError(f"add_param_group lr={lr}: must be a finite number > 0")
    parameters = named_parameters(model)
    known = {id(p): name for name, p in parameters.items()}
    names = [_name(tensor, known) for tensor in _tensors(param_group.get("params", ()))]
    for name in names:
        if name in partition.index:
            owner = partition.names[partition.index[name]]
            raise InputError(f"add_param_group params={name}: must be in no group yet; '{owner}' holds it")
    grown = partition.extended(model, names, param_group.get("name"))
    device = parameters[partition.groups[0].parameters[0]].device
    elsewhere = [name for name in names if parameters[name].device != device]
    if elsewhere:
        raise InputError(
            f"add_param_group params={listing(elsewhere)}: must be on {device}, as the other groups are; "
            f"found {parameters[elsewhere[0]].device}"
        )
    return Growth(grown, [(name, parameters[name]) for name in grown.groups[-1].parameters], float(lr))


def _tensors(params: Any) -> list[Any]:
    """The tensors, from any of the forms that torch accepts."""
    if isinstance(params, Tensor):
        return [params]
    return [entry[1] if isinstance(entry, tuple) else entry for entry in params]


def _name(tensor: Any, known: dict[int, str]) -> str:
    if id(tensor) in known:
        return known[id(tensor)]
    value = f"a tensor of shape {tuple(tensor.shape)}" if isinstance(tensor, Tensor) else repr(tensor)
    raise InputError(f"add_param_group params={value}: must be parameters of the model")
