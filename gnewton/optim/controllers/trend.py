"""λ_1 rises while the objective falls, and falls when it does not."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from gnewton.arguments import check_number, check_whole
from gnewton.errors import InputError
from gnewton.optim.controllers.controller import DAMPING, Controller, Site
from gnewton.optim.rate_rule import Proposal

LEAST = 4
"""Values that a trend takes; with fewer of them λ_1 rises."""

SHARE = 3
"""The trend is taken over one in so many of all values so far, once these are more than the window."""

STEPS = 10
"""Training steps that make one value, where updates are closer together than that: their objectives' mean."""

FALLING, RESTING = -2.0, -0.7
"""Trends below the first count as progress, above the second as none; between them λ_1 stays."""


class Progress(Controller):
    """Multiplies λ_1 by ``rise`` while the objective falls and by ``fall`` when it has stopped falling.

    Rates measured on their own batch are the minimiser for that batch at λ_1 = 1. At 2 its loss does not fall
    any more; beyond, the curvature gives way to longer steps, up to a point (docs/method.md, "How far to
    go"). How far pays is seen from the objective alone: its trend is the slope of the regression line through
    its last ``window`` values, in units of the standard error of that slope. A value is the objective at an
    update, or its mean over ten steps where updates are closer together.

    Args:
        rise: > 1, at a trend below −2.
        fall: in (0, 1), at a trend above −0.7.
        highest: λ_1 beyond which it does not rise, unless it begins there.
        lowest: λ_1 below which it does not fall, unless it begins there; > 0 and at most ``highest``.
        window: values the trend is taken over, >= 4; a third of all values so far, once that is more. As it
            grows, λ_1 moves by the same factors for a window as a whole, hence more and more slowly.

    Raises:
        InputError: for a value out of range.
    """

    def __init__(
        self,
        rise: float = 1.2,
        fall: float = 0.85,
        *,
        highest: float = 4.0,
        lowest: float = 0.3,
        window: int = 6,
    ) -> None:
        super().__init__()
        check_number("rise", rise, above=1)
        check_number("fall", fall, above=0, below=1)
        check_number("highest", highest, above=0)
        check_number("lowest", lowest, above=0)
        check_whole("window", window, LEAST)
        if lowest > highest:
            raise InputError(f"lowest={lowest}: must be > 0 and <= highest={highest}")
        self._rise, self._fall = rise, fall
        self._highest, self._lowest = highest, lowest
        self._window = window
        self._initial = 1.0  # λ_1 as the options give it
        self._share = 1  # updates that make one value
        self._count = 0
        self._recent: list[float] = []
        self._values: list[float] = []

    def begin(self, damping: float, period: int) -> None:
        """Keep what the bounds on λ_1 are bounds on the factor with, and turn steps into updates."""
        self._initial = damping
        self._share = math.ceil(STEPS / period)

    @property
    def quantity(self) -> str | None:
        """λ_1."""
        return DAMPING

    def settle(self, site: Site) -> Proposal:
        """Take in the objective, move λ_1 if there is a new value, then solve."""
        self._recent.append(site.objective)
        if len(self._recent) == self._share:
            self._count += 1
            window = max(self._window, self._count // SHARE)
            self._values = [*self._values, math.fsum(self._recent) / self._share][-window:]
            self._recent = []
            self._move(
                trend(self._values) if len(self._values) >= LEAST else -math.inf, self._window / window
            )
        return site.propose(self.damping, self.internal_damping)

    def state_dict(self) -> dict[str, Any]:
        """The factors, the last values, and the objectives of the next."""
        return {
            **super().state_dict(),
            "values": list(self._values),
            "recent": list(self._recent),
            "count": self._count,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        super().load_state_dict(state)
        self._values, self._recent = list(state["values"]), list(state["recent"])
        self._count = state["count"]

    def _move(self, slope: float, power: float) -> None:
        if slope < FALLING:
            self.damping = min(max(1.0, self._highest / self._initial), self._rise**power * self.damping)
        elif slope > RESTING:
            self.damping = max(min(1.0, self._lowest / self._initial), self._fall**power * self.damping)


def trend(values: Sequence[float]) -> float:
    """The slope of the regression line through three or more equally spaced values, over its standard error.

    0 for values that are all alike or not all finite, ±inf on a line.
    """
    if not all(map(math.isfinite, values)) or min(values) == max(values):
        return 0.0
    # the squares of very large and very small losses are no floats; a power of two changes nothing else
    exponent = math.frexp(max(map(abs, values)))[1]
    scaled = [math.ldexp(value, -exponent) for value in values]
    correlation = statistics.correlation(range(len(scaled)), scaled)
    rest = 1 - correlation**2
    if rest <= 0:
        return math.copysign(math.inf, correlation)
    return correlation * math.sqrt((len(scaled) - 2) / rest)
