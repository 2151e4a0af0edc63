"""The partition itself: disjoint, covering, ordered groups of named parameters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from gnewton.errors import InputError
from gnewton.options import did_you_mean, listing
from gnewton.partition import schemes
from gnewton.partition.parameters import frozen_names, tied_hint, trainable_sizes
from gnewton.wrappers import plain_name

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Group:
    """One group: its name, the names of its parameters in model order, and how many scalars they hold."""

    name: str
    parameters: tuple[str, ...]
    size: int


class Partition:
    """S disjoint groups that together hold every trainable parameter of a model.

    Parameters are named as in ``model.named_parameters()``; of a model in ``torch.compile`` or
    DistributedDataParallel, as in the network itself, without ``module.`` and ``_orig_mod.`` (names with them
    are understood). A tied parameter appears once, under its first name; frozen parameters
    (``requires_grad=False``) belong to no group. Build one with
    :meth:`from_names` or with one of the named schemes: :meth:`per_tensor`, :meth:`single`,
    :meth:`weights_biases`, :meth:`by_layer`, :meth:`blocks`, :meth:`alternate`, :meth:`patterns`.

    Args:
        groups: the groups, in the order that every summary uses for its rows and columns.
    """

    def __init__(self, groups: Iterable[Group]) -> None:
        self.groups = tuple(groups)
        _check_names(self.groups)

    @classmethod
    def from_names(
        cls,
        model: nn.Module,
        groups: Sequence[Sequence[str]] | Mapping[str, Sequence[str]],
    ) -> Partition:
        """Build a partition from parameter names.

        Args:
            model: the model whose trainable parameters must all be named exactly once.
            groups: a list of lists of parameter names, or a mapping from group name to such a list. Unnamed
                groups are called after their first parameter.

        Raises:
            InputError: naming the parameters that are unknown, frozen, named twice or left out, or the
                empty group.
        """
        named = groups.items() if isinstance(groups, Mapping) else ((None, names) for names in groups)
        claims = _Claims(model)
        members = [claims.group(label, names, position) for position, (label, names) in enumerate(named)]
        missing = claims.missing
        if missing:
            raise InputError(f"partition: no group holds {listing(missing)}")
        return cls(members)

    def extended(self, model: nn.Module, names: Sequence[str], label: str | None = None) -> Partition:
        """These groups and one more at the end.

        Args:
            model: the model of the partition. Its other trainable parameters may stay without a group, for
                the next extension.
            names: the parameters of the new group, trainable and in no other group.
            label: the name of the new group; None: that of its first parameter.

        Raises:
            InputError: as for :meth:`from_names`, or if a group has that name already.
        """
        claims = _Claims(model)
        claims.owner = {name: group.name for group in self for name in group.parameters}
        return Partition([*self, claims.group(label, names, len(self))])

    @classmethod
    def per_tensor(cls, model: nn.Module) -> Partition:
        """One group per parameter tensor, the canonical partition."""
        return cls.from_names(model, schemes.per_tensor(model))

    @classmethod
    def single(cls, model: nn.Module) -> Partition:
        """One group of everything, ``all``: one learning rate for the whole model."""
        return cls.from_names(model, schemes.single(model))

    @classmethod
    def weights_biases(cls, model: nn.Module) -> Partition:
        """``weights``, ``biases`` and the ``rest``, told apart by name, as far as the model has them."""
        return cls.from_names(model, schemes.weights_biases(model))

    @classmethod
    def by_layer(cls, model: nn.Module) -> Partition:
        """One group per module that owns parameters, called after it."""
        return cls.from_names(model, schemes.by_layer(model))

    @classmethod
    def blocks(cls, model: nn.Module, k: int) -> Partition:
        """k blocks of consecutive layers; weights, biases and the rest apart (``block0.weights`` …).

        Raises:
            InputError: if k is not between 1 and the number of layers.
        """
        return cls.from_names(model, schemes.blocks(model, k))

    @classmethod
    def alternate(cls, model: nn.Module, k: int) -> Partition:
        """Layers by their index modulo k; weights, biases and the rest apart (``alternate0.weights`` …).

        Raises:
            InputError: if k is not between 1 and the number of layers.
        """
        return cls.from_names(model, schemes.alternate(model, k))

    @classmethod
    def patterns(
        cls, model: nn.Module, expressions: Sequence[str] | Mapping[str, str], rest: str | None = None
    ) -> Partition:
        """One group per regular expression, and one called ``rest`` for what none matches.

        Args:
            model: the model to split.
            expressions: each searched anywhere in the parameters' names; a parameter belongs to the first
                that is found. Groups are called after their expression, or after its key in a mapping.
            rest: name of the group of what no expression matches; None makes that an error.

        Raises:
            InputError: for an expression that is invalid or gets no parameter, and for parameters left over.
        """
        return cls.from_names(model, schemes.patterns(model, expressions, rest))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the groups, in order."""
        return tuple(group.name for group in self.groups)

    @cached_property
    def index(self) -> dict[str, int]:
        """Position of the group that holds each parameter, by parameter name."""
        return {name: s for s, group in enumerate(self.groups) for name in group.parameters}

    def __len__(self) -> int:
        return len(self.groups)

    def __iter__(self) -> Iterator[Group]:
        return iter(self.groups)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Partition) and self.groups == other.groups

    def __hash__(self) -> int:
        return hash(self.groups)

    def __repr__(self) -> str:
        return f"Partition({len(self)} groups of {sum(group.size for group in self):,} parameters)"

    def describe(self) -> str:
        """A printable table: one line per group with its size and its parameters."""
        width = max(len(group.name) for group in self)
        count = "1 group" if len(self) == 1 else f"{len(self)} groups"
        lines = [f"{count}, {sum(group.size for group in self):,} parameters"]
        lines += [f"  {g.name:<{width}}  {g.size:>12,}  {listing(g.parameters, 4)}" for g in self]
        return "\n".join(lines)


class _Claims:
    """The trainable parameters of a model, each claimed by at most one group."""

    def __init__(self, model: nn.Module) -> None:
        self.owner: dict[str, str] = {}
        self._model = model
        self._sizes = trainable_sizes(model)
        self._frozen = frozen_names(model)
        self._order = {name: position for position, name in enumerate(self._sizes)}

    @property
    def missing(self) -> list[str]:
        """Parameters that no group has claimed."""
        return [name for name in self._sizes if name not in self.owner]

    def group(self, label: str | None, names: Sequence[str], position: int) -> Group:
        """The group of the parameters ``names``, called after the first where there is no label."""
        names = [self._known(name) for name in names]
        title = label if label is not None else (names[0] if names else f"#{position}")
        if not names:
            raise InputError(f"partition: group '{title}' is empty; every group needs a parameter")
        for name in names:
            self._claim(title, name)
        in_order = tuple(sorted(names, key=self._order.__getitem__))
        return Group(title, in_order, sum(self._sizes[name] for name in in_order))

    def _known(self, name: str) -> str:
        """``name`` without the prefix of a wrapper of the model."""
        return name if name in self._order or name in self._frozen else plain_name(self._model, name)

    def _claim(self, title: str, name: str) -> None:
        if name in self._frozen:
            raise InputError(f"partition: group '{title}' names '{name}', which is frozen")
        if name not in self._sizes:
            hint = tied_hint(self._model, name) or did_you_mean(name, self._sizes)
            raise InputError(f"partition: group '{title}' names the unknown parameter '{name}'{hint}")
        if name in self.owner:
            other = self.owner[name]
            where = f"twice in '{title}'" if other == title else f"in both '{other}' and '{title}'"
            raise InputError(f"partition: '{name}' is {where}")
        self.owner[name] = title


def _check_names(groups: tuple[Group, ...]) -> None:
    if not groups:
        raise InputError("partition: no groups; at least one is needed")
    seen: set[str] = set()
    for group in groups:
        if group.name in seen:
            raise InputError(f"partition: two groups are called '{group.name}'")
        seen.add(group.name)
