"""Checks of K-FAC's arguments, each with the name of the option in its message."""

from __future__ import annotations

import math

from gnewton.errors import InputError


def check_number(
    name: str, value: float, *, above: float = -math.inf, at_least: float = -math.inf, below: float = math.inf
) -> None:
    """A finite number within bounds.

    Raises:
        InputError: for any other.
    """
    if not (math.isfinite(value) and value > above and value >= at_least and value < below):
        low = f"> {above:g}" if above > -math.inf else f">= {at_least:g}"
        high = f" and < {below:g}" if below < math.inf else ""
        raise InputError(f"{name}={value}: must be a finite number {low}{high}")


def check_period(name: str, value: int) -> None:
    """A number of steps.

    Raises:
        InputError: unless it is an integer >= 1.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{name}={value}: must be an integer >= 1")


def check_name(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """One of a few names.

    Raises:
        InputError: for any other.
    """
    if value not in allowed:
        raise InputError(f"{name}={value}: must be one of {', '.join(allowed)}")
