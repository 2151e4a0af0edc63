"""One group of a partition: whole parameters, and slices, whose index along one axis lies in some ranges."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from gnewton.errors import InputError

MOST_BY_TANGENTS = 256
"""The largest number of groups, some of them slices, whose tangents are carried one by one."""


@dataclass(frozen=True)
class Slice:
    """A part of a parameter.

    Attributes:
        parameter: its name.
        axis: the axis along which it is cut.
        ranges: pairs (start, stop) of indices along that axis, ascending and disjoint.
    """

    parameter: str
    axis: int
    ranges: tuple[tuple[int, int], ...]

    def __len__(self) -> int:
        return sum(stop - start for start, stop in self.ranges)

    def __str__(self) -> str:
        before = ":," * self.axis
        return ", ".join(f"{self.parameter}[{before}{a}:{b}]" for a, b in self.ranges)


@dataclass(frozen=True)
class Group:
    """One group: its name, the parameters that it holds whole, in model order, how many scalars it holds, and
    the slices of further parameters.
    """

    name: str
    parameters: tuple[str, ...]
    size: int
    slices: tuple[Slice, ...] = ()

    @property
    def touched(self) -> tuple[str, ...]:
        """The names of the parameters that it holds, whole or in part."""
        return (*self.parameters, *(piece.parameter for piece in self.slices))


@dataclass(frozen=True)
class Slicing:
    """How one parameter is divided among groups.

    Attributes:
        axis: the axis along which it is cut.
        owners: the group of every index along that axis.
    """

    axis: int
    owners: tuple[int, ...]

    def view(self, dim: int) -> tuple[int, ...]:
        """The shape in which one number per index is broadcast over a parameter of ``dim`` axes."""
        return tuple(len(self.owners) if axis == self.axis else 1 for axis in range(dim))


def slicings(groups: Iterable[Group]) -> dict[str, Slicing]:
    """How each sliced parameter is divided, by name.

    Raises:
        InputError: if slices of one parameter overlap, leave a gap, lie along several axes, or stand beside
            the whole parameter.
    """
    groups = tuple(groups)
    owned: dict[str, dict[int, int]] = {}
    axes: dict[str, int] = {}
    for s, group in enumerate(groups):
        for piece in group.slices:
            if axes.setdefault(piece.parameter, piece.axis) != piece.axis:
                raise InputError(f"partition: '{piece.parameter}' is cut along several axes")
            indices = owned.setdefault(piece.parameter, {})
            for start, stop in piece.ranges:
                for i in range(start, stop):
                    if i in indices:
                        raise InputError(f"partition: '{group.name}' holds {piece}, part of which is held")
                    indices[i] = s
    whole = {name for group in groups for name in group.parameters}
    for name, indices in owned.items():
        if name in whole:
            raise InputError(f"partition: '{name}' is held whole and in slices")
        if set(indices) != set(range(len(indices))):
            raise InputError(f"partition: the slices of '{name}' leave a gap")
    return {
        name: Slicing(axes[name], tuple(indices[i] for i in range(len(indices))))
        for name, indices in owned.items()
    }


def check_slice(piece: Slice, shape: tuple[int, ...]) -> None:
    """Check that a slice is a part of a parameter of this shape.

    Raises:
        InputError: if it is not, or is empty.
    """
    if not 0 <= piece.axis < len(shape):
        raise InputError(
            f"partition: axis={piece.axis} of a slice of '{piece.parameter}': must be from 0 to "
            f"{len(shape) - 1}"
        )
    if not len(piece) or not all(0 <= a < b <= shape[piece.axis] for a, b in piece.ranges):
        raise InputError(
            f"partition: ranges={piece.ranges} of a slice of '{piece.parameter}': must be pairs "
            f"0 <= start < stop <= {shape[piece.axis]}"
        )


def check_covered(groups: Iterable[Group], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Check that the slices of each parameter hold all of it.

    Raises:
        InputError: if they do not.
    """
    for name, slicing in slicings(groups).items():
        length = shapes[name][slicing.axis]
        if len(slicing.owners) != length:
            raise InputError(
                f"partition: the slices of '{name}' hold {len(slicing.owners)} of {length} indices"
            )


def require_whole(sliced: bool, what: str) -> None:
    """Check that no group is a slice of a tensor, where ``what`` needs whole ones.

    Raises:
        InputError: if one is.
    """
    if sliced:
        raise InputError(
            f"partition: {what} needs groups of whole tensors, not of slices; use partition=per_tensor, "
            "by_layer, blocks or patterns"
        )
