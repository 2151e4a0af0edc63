"""Controllers: rules that move the step size λ_1 from update to update."""

from __future__ import annotations

import math
import statistics
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from gnewton.arguments import check_options
from gnewton.errors import InputError
from gnewton.optim.hyperparameters import ProgressHyperparameters

LEAST = 4
"""Number of values that a trend needs."""

FIRST_RISES = LEAST - 1
"""Number of values at the start at which λ_1 rises in any case, unless the options say otherwise."""

SHARE = 3
"""The trend is taken over the last third of all values, once that is more than the window."""

STEPS = 10
"""Number of training steps per value; if updates are closer together, a value is their mean objective."""

FALLING, RESTING = -2.0, -0.7
"""A trend below the first is progress, one above the second is none; between them λ_1 stays."""


class Controller(ABC):
    """A rule that moves the step size from update to update.

    Attributes:
        step_size: the factor on λ_1 in force; 1 at the start.
        along_kfac: whether K-FAC's step is the direction; GroupedNewton says so before :meth:`begin`.
    """

    along_kfac = False

    def __init__(self) -> None:
        self.step_size = 1.0

    def begin(self, step_size: float, period: int) -> None:  # noqa: B027 - not every controller needs it
        """Take in the initial λ_1 and the number of steps between two updates."""

    @abstractmethod
    def observe(self, objective: float) -> None:
        """Take in the objective, to be minimised, on the curvature batch of an update, and move the factor.

        It is not called at warm-up updates, nor at those without a finite summary.
        """

    def state_dict(self) -> dict[str, Any]:
        """The state from which :meth:`load_state_dict` continues exactly."""
        return {"step_size": self.step_size}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the value of :meth:`state_dict`."""
        self.step_size = state["step_size"]


class Constant(Controller):
    """λ_1 keeps the value of the options."""

    def observe(self, objective: float) -> None:
        """Leave the factor as it is."""


class Progress(Controller):
    """Multiplies λ_1 by ``rise`` while the objective falls fast, by ``fall`` when it has stopped falling.

    At λ_1 = 1 the rates are the minimiser for their own batch; at 2 its loss no longer falls. Beyond, the
    curvature gives way to longer steps, up to a point (docs/method.md, "How far to go"). Only the objective
    shows how far pays. Its trend is the slope of the regression line through its last ``window`` values, in
    units of the standard error of the slope. Its exponent p is that of a power law, objective ~ n^−p after n
    values: where all samples can be fitted p is large, where noise keeps the loss up it is small, however
    sure the trend. An objective that is not positive has no exponent, and the trend alone counts. A value is
    the objective at an update, or its mean over ten steps if updates are closer together.

    Args:
        rise: > 1, at a trend below −2 and, beyond λ_1 = 1, a p of at least ``exponent``.
        fall: in (0, 1), at a trend above −0.7.
        highest: upper bound on λ_1, unless it begins above.
        lowest: lower bound on λ_1, unless it begins below; > 0 and at most ``highest``.
        window: number of values in the trend, >= 4; a third of all values so far, once that is more. While
            it grows, λ_1 moves by the same factor per window, hence more and more slowly.
        exponent: least p at which λ_1 rises beyond 1, >= 0.
        first_rises: number of values at the start, from 0 to 3, at which λ_1 rises in any case; at the rest
            of the first three it rises if p allows. None: 3, or 0 for an optimizer along K-FAC's direction,
            whose minimiser is no shorter at the start than later.

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
        exponent: float = 0.5,
        first_rises: int | None = None,
    ) -> None:
        super().__init__()
        check_options(
            ProgressHyperparameters,
            rise=rise,
            fall=fall,
            highest=highest,
            lowest=lowest,
            window=window,
            exponent=exponent,
            first_rises=first_rises,
        )
        if lowest > highest:
            raise InputError(f"lowest={lowest}: must be > 0 and <= highest={highest}")
        self._rise, self._fall = rise, fall
        self._highest, self._lowest = highest, lowest
        self._window = window
        self._exponent = exponent
        self._first_rises = first_rises
        self._initial = 1.0  # λ_1 in the options
        self._share = 1  # number of updates per value
        self._count = 0
        self._recent: list[float] = []
        self._values: list[float] = []

    def begin(self, step_size: float, period: int) -> None:
        """Take in the initial λ_1, for the bounds, and the number of steps between two updates."""
        self._initial = step_size
        self._share = math.ceil(STEPS / period)

    def observe(self, objective: float) -> None:
        """Add the objective, and move λ_1 if there is a new value."""
        self._recent.append(objective)
        if len(self._recent) == self._share:
            self._count += 1
            window = max(self._window, self._count // SHARE)
            self._values = [*self._values, math.fsum(self._recent) / self._share][-window:]
            self._recent = []
            self._move(self._window / window)

    def state_dict(self) -> dict[str, Any]:
        """The factor, the last values, and the objectives of the next value."""
        return {
            **super().state_dict(),
            "values": list(self._values),
            "recent": list(self._recent),
            "count": self._count,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the value of :meth:`state_dict`."""
        super().load_state_dict(state)
        self._values, self._recent = list(state["values"]), list(state["recent"])
        self._count = state["count"]

    def _move(self, power: float) -> None:
        slope = trend(self._values) if len(self._values) >= LEAST else None
        if self._rises(slope):
            self.step_size = min(max(1.0, self._highest / self._initial), self._rise**power * self.step_size)
        elif slope is not None and slope > RESTING:
            self.step_size = max(min(1.0, self._lowest / self._initial), self._fall**power * self.step_size)

    def _rises(self, slope: float | None) -> bool:
        """Whether λ_1 rises, given the trend; None: there are too few values for one."""
        first = self._first_rises
        if first is None:
            first = 0 if self.along_kfac else FIRST_RISES
        if self._count <= first:
            return True
        fast = decay_exponent(self._values, self._count) >= self._exponent
        if slope is None:
            return fast
        short = self._initial * self.step_size < 1  # of the minimiser
        return (fast or short) and slope < FALLING


def trend(values: Sequence[float]) -> float:
    """The slope of the regression line through three or more equally spaced values, over its standard error.

    It is 0 if all values are equal or one is not finite, and ±inf if they lie on a line.
    """
    if not all(map(math.isfinite, values)) or min(values) == max(values):
        return 0.0
    # squares of very large or very small losses overflow or underflow; scaling by a power of two is exact
    exponent = math.frexp(max(map(abs, values)))[1]
    scaled = [math.ldexp(value, -exponent) for value in values]
    correlation = statistics.correlation(range(len(scaled)), scaled)
    rest = 1 - correlation**2
    if rest <= 0:
        return math.copysign(math.inf, correlation)
    return correlation * math.sqrt((len(scaled) - 2) / rest)


def decay_exponent(values: Sequence[float], count: int) -> float:
    """p of the power law n^−p fitted to the values number n = ``count`` − len(values) + 1 … ``count``.

    The fit is the regression line of their logarithms on that of n. p is inf if a value is not positive,
    which has no logarithm, and −inf for a single value or one that is not finite.
    """
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return -math.inf
    if min(values) <= 0:
        return math.inf
    numbers = range(count - len(values) + 1, count + 1)
    return -statistics.linear_regression(list(map(math.log, numbers)), list(map(math.log, values))).slope
