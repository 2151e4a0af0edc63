"""Search spaces: for each option an interval or a list of values, and points in the unit cube as settings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gnewton.errors import InputError
from gnewton.options import listing, show

DIGITS = 4
"""Significant digits of a sampled number: enough to tune by, and short enough to write down."""

BUDGET = ("trainer.epochs", "trainer.max_steps", "trainer.max_seconds", "trainer.target.value", "seed")
"""Options that every trial must share."""

_NO_SETTINGS = ("optimizer", "experiment", "resume", "output_root", "name")

_KEYS = ("low", "high", "log", "integer", "values")


@dataclass(frozen=True)
class Dimension:
    """One option and where its values come from.

    Attributes:
        option: its name on the command line.
        low, high: the ends of the interval, both of which can be reached.
        log: whether the logarithm is uniform, not the number.
        integer: whether only whole numbers count.
        values: instead of an interval, the values themselves.
    """

    option: str
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    integer: bool = False
    values: tuple[Any, ...] = ()

    @classmethod
    def parse(cls, option: str, entry: Mapping[str, Any]) -> Dimension:
        """From ``{low, high, log, integer}`` or ``{values}``.

        Raises:
            InputError: if it is neither.
        """
        unknown = [key for key in entry if key not in _KEYS]
        if unknown:
            raise InputError(f"{option}: {unknown[0]} is none of {listing(_KEYS)}")
        if option in BUDGET or option in _NO_SETTINGS:
            raise InputError(f"{option}: every trial has the same; it cannot be tuned")
        if "values" in entry:
            values = entry["values"]
            if len(entry) > 1 or not isinstance(values, (list, tuple)) or not values:
                raise InputError(f"{option}: values must be a list of one value or more, and stands alone")
            return cls(option, values=tuple(values))
        low, high = entry.get("low", math.nan), entry.get("high", math.nan)
        log, integer = entry.get("log", False), entry.get("integer", False)
        if not (_number(low) and _number(high) and low < high):
            raise InputError(f"{option}: must have numbers low < high, or values")
        if not isinstance(log, bool) or not isinstance(integer, bool):
            raise InputError(f"{option}: log and integer must be true or false")
        if log and low <= 0:
            raise InputError(f"{option}: low={show(low)} must be > 0 where log=true")
        if integer and not (float(low).is_integer() and float(high).is_integer()):
            raise InputError(f"{option}: low and high must be whole numbers where integer=true")
        return cls(option, float(low), float(high), log, integer)

    def value(self, share: float) -> Any:
        """The value at a share in [0, 1] of the way through the interval or list."""
        if self.values:
            return self.values[min(int(share * len(self.values)), len(self.values) - 1)]
        # every whole number has a stretch of its own, from itself to the next
        high = self.high + 1 if self.integer else self.high
        number = self.low * (high / self.low) ** share if self.log else self.low + (high - self.low) * share
        return min(math.floor(number), int(self.high)) if self.integer else self.rounded(number)

    def rounded(self, number: float) -> float:
        """A number of the interval with few digits, still in it."""
        return min(max(float(f"{number:.{DIGITS}g}"), self.low), self.high)


@dataclass(frozen=True)
class Space:
    """The search space of one optimizer."""

    optimizer: str
    dimensions: tuple[Dimension, ...]

    @classmethod
    def parse(cls, optimizer: str, entries: Mapping[str, Mapping[str, Any]]) -> Space:
        """From a mapping of options to what :meth:`Dimension.parse` reads.

        Raises:
            InputError: naming the option that is wrong.
        """
        try:
            return cls(optimizer, tuple(Dimension.parse(name, entry) for name, entry in entries.items()))
        except InputError as error:
            raise InputError(f"{optimizer}: {error}") from None

    def point(self, shares: Sequence[float]) -> dict[str, Any]:
        """The settings at a point of the unit cube."""
        pairs = zip(self.dimensions, shares, strict=True)
        return {dimension.option: dimension.value(share) for dimension, share in pairs}

    def rows(self) -> list[dict[str, Any]]:
        """One row of space.csv for each option."""
        return [
            {
                "optimizer": self.optimizer,
                "option": each.option,
                "low": None if each.values else each.low,
                "high": None if each.values else each.high,
                "log": None if each.values else each.log,
                "integer": None if each.values else each.integer,
                "values": show(each.values) if each.values else None,
            }
            for each in self.dimensions
        ]


def overrides_of(point: Mapping[str, Any]) -> list[str]:
    """Settings as they are written on the command line."""
    return [f"{name}={show(value)}" for name, value in point.items()]


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
