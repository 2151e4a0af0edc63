"""The partition itself: disjoint, covering, ordered groups of named parameters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from gnewton.errors import InputError
from gnewton.options import did_you_mean, listing
from gnewton.partition import schemes
from gnewton.partition.schemes import frozen_names, tied_hint, trainable_shapes, trainable_sizes
from gnewton.partition.slices import Group, Slice, Slicing, check_covered, check_slice, slicings
from gnewton.wrappers import plain_name

if TYPE_CHECKING:
    from torch import nn


class Partition:
    """S disjoint groups that together hold every trainable parameter of a model.

    Parameters are named as in ``model.named_parameters()``; of a model in ``torch.compile`` or
    DistributedDataParallel, as in the network itself, without ``module.`` and ``_orig_mod.`` (names with them
    are understood). A tied parameter appears once, under its first name; frozen parameters
    (``requires_grad=False``) belong to no group. Build one with
    :meth:`from_names` or with one of the named schemes: :meth:`per_tensor`, :meth:`single`,
    :meth:`weights_biases`, :meth:`by_layer`, :meth:`blocks`, :meth:`alternate`, :meth:`patterns`. The groups
    of :meth:`per_channel`, :meth:`row_blocks`, :meth:`per_head` and :meth:`from_slices` are slices of
    parameters.

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

    @classmethod
    def from_slices(cls, model: nn.Module, groups: Mapping[str, Sequence[str | Slice]]) -> Partition:
        """Build a partition from parameter names and slices of parameters.

        Args:
            model: the model, every entry of whose trainable parameters must be in exactly one group.
            groups: the parameters and slices of each group, by the name of the group.

        Raises:
            InputError: as for :meth:`from_names`, and for slices that overlap or leave a gap.
        """
        claims, shapes = _Claims(model), trainable_shapes(model)
        members = []
        for position, (label, entries) in enumerate(groups.items()):
            pieces = tuple(entry for entry in entries if isinstance(entry, Slice))
            names = [entry for entry in entries if isinstance(entry, str)]
            group = claims.group(label, names, position) if names or not pieces else Group(label, (), 0)
            for piece in pieces:
                claims.slice(label, piece)
                check_slice(piece, shapes[piece.parameter])
            size = sum(claims.size(piece.parameter) // shapes[piece.parameter][piece.axis] * len(piece)
                       for piece in pieces)  # fmt: skip
            members.append(Group(label, group.parameters, group.size + size, pieces))
        if claims.missing:
            raise InputError(f"partition: no group holds {listing(claims.missing)}")
        check_covered(members, shapes)
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
        claims.owner = {name: group.name for group in self for name in group.touched}
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

    @classmethod
    def per_channel(cls, model: nn.Module) -> Partition:
        """One group per output channel or neuron, its row of the weight and its bias (``conv1[3]``)."""
        return cls.from_slices(model, schemes.per_channel(model))

    @classmethod
    def row_blocks(cls, model: nn.Module, rows: int) -> Partition:
        """One group per block of ``rows`` output channels of a layer (``conv1[0:64]``).

        Raises:
            InputError: if there is not at least one row.
        """
        return cls.from_slices(model, schemes.row_blocks(model, rows))

    @classmethod
    def per_head(cls, model: nn.Module) -> Partition:
        """One group per attention head (``attention.head0``), and one per tensor for everything else.

        Raises:
            InputError: if no attention is recognised.
        """
        return cls.from_slices(model, schemes.per_head(model))

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the groups, in order."""
        return tuple(group.name for group in self.groups)

    @cached_property
    def index(self) -> dict[str, int]:
        """Position of the group that holds each whole parameter, by parameter name."""
        return {name: s for s, group in enumerate(self.groups) for name in group.parameters}

    @cached_property
    def slicing(self) -> dict[str, Slicing]:
        """How each parameter that is held in slices is divided, by parameter name."""
        return slicings(self.groups)

    @property
    def sliced(self) -> bool:
        """Whether a group is a slice of a parameter."""
        return bool(self.slicing)

    @cached_property
    def parameters(self) -> tuple[str, ...]:
        """Names of all parameters, each once, in the order in which groups hold them."""
        return tuple(dict.fromkeys(name for group in self.groups for name in group.touched))

    @cached_property
    def holders(self) -> dict[str, tuple[int, ...]]:
        """Positions of the groups that hold a part of each parameter, ascending, by parameter name."""
        parts = {name: tuple(sorted(set(slicing.owners))) for name, slicing in self.slicing.items()}
        return {name: (s,) for name, s in self.index.items()} | parts

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
        held = [listing([*group.parameters, *map(str, group.slices)], 4) for group in self]
        rows = zip(self, held, strict=True)
        lines += [f"  {group.name:<{width}}  {group.size:>12,}  {text}" for group, text in rows]
        if self.sliced and len(lines) > _SHOWN:
            lines[_SHOWN:-1] = [f"  … {len(lines) - _SHOWN - 1:,} more groups"]
        return "\n".join(lines)


class _Claims:
    """The trainable parameters of a model, each claimed by at most one group."""

    def __init__(self, model: nn.Module) -> None:
        self.owner: dict[str, str] = {}
        self._model = model
        self._sizes = trainable_sizes(model)
        self._frozen = frozen_names(model)
        self._sliced: set[str] = set()
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

    def size(self, name: str) -> int:
        """Number of scalars of a parameter."""
        return self._sizes[name]

    def slice(self, title: str, piece: Slice) -> None:
        """Claim a slice of a parameter."""
        if piece.parameter not in self._sliced:
            self._claim(title, piece.parameter)
            self._sliced.add(piece.parameter)

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


_SHOWN = 40  # lines of a description with slices


def _check_names(groups: tuple[Group, ...]) -> None:
    if not groups:
        raise InputError("partition: no groups; at least one is needed")
    names: set[str] = set()
    for group in groups:
        if group.name in names:
            raise InputError(f"partition: two groups are called '{group.name}'")
        names.add(group.name)
