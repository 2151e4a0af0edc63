"""Stacked tangents: one row per group of parameters, along a leading axis."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


class Rows:
    """Tangents of one value, stacked: a row of its shape for each of k groups; all other rows are zero.

    The rows may lie in several tensors (``parts``), in order, so groups that start at a layer join the others
    without a copy. Groups are numbered in the order in which a program first uses them, so the rows of an
    early layer are the first rows of every later one.

    Attributes:
        groups: ascending group numbers, length k.
        parts: tensors of shape (k_i, *value shape), with Σ k_i = k.
        owned: whether the holder of this object may overwrite the parts.
        room: a stack that begins with the only part and has free rows behind it, for groups that join.
    """

    __slots__ = ("groups", "owned", "parts", "room")

    def __init__(
        self, groups: tuple[int, ...], parts: list[Tensor], owned: bool, room: Tensor | None = None
    ) -> None:
        self.groups = groups
        self.parts = parts
        self.owned = owned
        self.room = room

    def __len__(self) -> int:
        return len(self.groups)

    @property
    def shape(self) -> torch.Size:
        """Shape of the value."""
        return self.parts[0].shape[1:]

    def by_part(self) -> Iterator[tuple[tuple[int, ...], Tensor]]:
        """The parts, each with its groups."""
        start = 0
        for part in self.parts:
            yield self.groups[start : start + part.shape[0]], part
            start += part.shape[0]

    def merge(self) -> Tensor:
        """Merge the parts into one tensor, (k, *value shape), and return it.

        Several parts are copied into new memory, which these rows then own; a single part stays as it is.
        """
        if len(self.parts) > 1:
            self.parts = [torch.cat(self.parts)]
            self.owned = True
        return self.parts[0]

    def borrowed(self) -> Rows:
        """The same rows for a reader that must neither overwrite them nor use the room behind them."""
        return Rows(self.groups, self.parts, owned=False)

    def shared(self) -> Rows:
        """The same rows once their memory belongs to another value too."""
        return Rows(self.groups, self.parts, owned=False, room=self.room)

    def map(self, function: Callable[[Tensor], Tensor], *, fresh: bool) -> Rows:
        """Apply a linear function of a stack (k, *shape) → (k, *new shape) to every part.

        ``fresh`` means that the function returns new memory; otherwise the result may share that of the rows.
        """
        if self.room is not None and not fresh:
            room = function(self.room)
            return Rows(self.groups, [room[: len(self)]], owned=self.owned, room=room)
        parts = [function(part) for part in self.parts]
        return Rows(self.groups, parts, owned=True if fresh else self.owned)

    def pick(self, groups: Sequence[int]) -> Tensor:
        """The rows of ``groups``, which must all be present, in that order."""
        sought = tuple(groups)
        data = self.merge()
        if sought == self.groups:
            return data
        at = [self.groups.index(g) for g in sought]
        if at == list(range(at[0], at[0] + len(at))):
            return data[at[0] : at[0] + len(at)]
        return data[at]

    def widen(self, groups: tuple[int, ...]) -> Tensor:
        """Rows for all of ``groups``, zeros for those that are absent."""
        if groups == self.groups:
            return self.merge()
        wide = self.parts[0].new_zeros((len(groups), *self.shape))
        place(wide, groups, self, add=False)
        return wide


@dataclass
class Tangent:
    """The derivatives of a value with respect to ε.

    Attributes:
        first: ∂v/∂ε_s, for the groups that have started.
        second: ∂²v/∂ε_s², for those of these groups in which the value is not affine; None for none.
        leaf: whether the value is a parameter, or a view of one, whose share of the gradient is added where
            it is multiplied (see ``rules.product``).
    """

    first: Rows
    second: Rows | None = None
    leaf: bool = False

    def map(self, function: Callable[[Tensor], Tensor], *, fresh: bool) -> Tangent:
        """The tangent of a linear function of the value; ``function`` acts on stacks."""
        second = None if self.second is None else self.second.map(function, fresh=fresh)
        return Tangent(self.first.map(function, fresh=fresh), second)

    def spread(self, shape: torch.Size) -> Tangent:
        """The tangent of the value broadcast to ``shape``.

        Rows that are broadcast share memory with each other, so nobody may overwrite them.
        """
        if self.first.shape == shape:
            return Tangent(self.first, self.second)
        return self.map(lambda rows: spread_rows(rows, shape), fresh=False).borrowed()

    def rows(self) -> list[Rows]:
        """The first-order and, where they are not zero, the second-order rows."""
        return [self.first] if self.second is None else [self.first, self.second]

    def borrowed(self) -> Tangent:
        """The same tangent for a reader that must not overwrite it."""
        second = None if self.second is None else self.second.borrowed()
        return Tangent(self.first.borrowed(), second, self.leaf)

    def shared(self) -> Tangent:
        """The same tangent once its memory belongs to another value too."""
        second = None if self.second is None else self.second.shared()
        return Tangent(self.first.shared(), second, self.leaf)


def line_up(rows: Tensor, dims: int) -> Tensor:
    """A stack (k, *small) as (k, 1, …, *small), for values with ``dims`` axes; without a copy."""
    missing = dims - (rows.dim() - 1)
    return rows.reshape(len(rows), *[1] * missing, *rows.shape[1:]) if missing > 0 else rows


def spread_rows(rows: Tensor, shape: torch.Size) -> Tensor:
    """A stack (k, *small) broadcast to (k, *shape), without a copy."""
    return line_up(rows, len(shape)).expand(len(rows), *shape)


def fold_rows(rows: Tensor, shape: torch.Size) -> Tensor:
    """Sum a stack (k, *large) over the axes along which ``shape`` was broadcast: (k, *shape).

    Where the result has fewer entries, it is in memory of its own.
    """
    wide = (len(rows), *[1] * (rows.dim() - 1 - len(shape)), *shape)
    rows = rows if rows.shape == wide else rows.sum_to_size(wide)
    return rows.reshape(len(rows), *shape)


def union(*many: tuple[int, ...]) -> tuple[int, ...]:
    """All groups of several stacks, ascending."""
    first = many[0]
    if all(groups == first for groups in many):
        return first
    return tuple(sorted(set().union(*many)))


def span(present: tuple[int, ...], among: tuple[int, ...]) -> slice | list[int]:
    """The index of the rows of ``present`` in a stack with rows for ``among``."""
    start = among.index(present[0])
    if among[start : start + len(present)] == present:
        return slice(start, start + len(present))
    return [among.index(g) for g in present]


def place(target: Tensor, groups: tuple[int, ...], rows: Rows, *, add: bool) -> None:
    """Write or add ``rows`` into the stack ``target`` that has a row for each of ``groups``."""
    for groups_of_part, part in rows.by_part():
        at = span(groups_of_part, groups)
        if isinstance(at, slice):
            (target[at].add_ if add else target[at].copy_)(part)
        else:
            for row, i in zip(part, at, strict=True):
                (target[i].add_ if add else target[i].copy_)(row)


def total(terms: Sequence[Rows | None]) -> Rows | None:
    """The sum of several stacks of one value shape; without a copy where their groups follow each other."""
    present = [rows for rows in terms if rows is not None]
    if len(present) < 2:
        return present[0] if present else None
    present.sort(key=lambda rows: rows.groups)
    if all(a.groups[-1] < b.groups[0] for a, b in itertools.pairwise(present)):
        groups = tuple(g for rows in present for g in rows.groups)
        room = present[0].room
        if room is not None and len(room) >= len(groups):
            for rows in present[1:]:
                place(room, groups, rows, add=False)
            return Rows(groups, [room[: len(groups)]], owned=present[0].owned, room=room)
        parts = [part for rows in present for part in rows.parts]
        return Rows(groups, parts, owned=all(rows.owned for rows in present))
    groups = union(*(rows.groups for rows in present))
    for i, rows in enumerate(present):
        if rows.groups == groups and rows.owned:
            target, rest = rows.merge(), present[:i] + present[i + 1 :]
            break
    else:
        largest = max(present, key=len)
        i = next(i for i, rows in enumerate(present) if rows is largest)
        rest = present[:i] + present[i + 1 :]
        if largest.groups == groups:
            target = largest.merge().clone(memory_format=torch.contiguous_format)
        else:
            target = torch.zeros(
                (len(groups), *largest.shape), dtype=largest.parts[0].dtype, device=largest.parts[0].device
            )
            place(target, groups, largest, add=False)
    for rows in rest:
        place(target, groups, rows, add=True)
    return Rows(groups, [target], owned=True)
