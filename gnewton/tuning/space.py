"""Search spaces (the values of each option), and samplers of the settings to try next, given earlier scores.

A sampler depends on nothing but its arguments, so that a resumed search places the same trials.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gnewton.errors import InputError
from gnewton.experiment.schema import options_with
from gnewton.options import Role, listing, option, show
from gnewton.sweep.launchers import require_package

DIGITS = 4
"""Significant digits of a sampled number: enough for tuning, and short enough to write down."""

BUDGET = (*options_with(Role.BUDGET), "seed")
"""Options in which all trials must agree."""

_NO_SETTINGS = ("optimizer", "experiment", "resume", "output_root", "name")

_KEYS = ("low", "high", "log", "integer", "values")


@dataclass(frozen=True)
class Dimension:
    """The range of one option.

    Attributes:
        option: its name on the command line.
        low, high: ends of the interval, both included.
        log: whether the logarithm of the value is uniform, rather than the value.
        integer: whether the values are whole numbers.
        values: a list of values instead of an interval.
    """

    option: str
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    integer: bool = False
    values: tuple[Any, ...] = ()

    @classmethod
    def parse(cls, option: str, entry: Mapping[str, Any]) -> Dimension:
        """Parse ``{low, high, log, integer}`` or ``{values}``.

        Raises:
            InputError: if ``entry`` has neither form.
        """
        unknown = [key for key in entry if key not in _KEYS]
        if unknown:
            raise InputError(f"{option}: {unknown[0]} is none of {listing(_KEYS)}")
        if option in BUDGET or option in _NO_SETTINGS:
            raise InputError(f"{option}: every trial has the same; it cannot be tuned")
        if "values" in entry:
            values = entry["values"]
            if len(entry) > 1 or not isinstance(values, (list, tuple)) or not values:
                raise InputError(f"{option}: values must be a list, not empty; it excludes other keys")
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
        """The value at the position ``share`` in [0, 1] of the interval or list."""
        if self.values:
            return self.values[min(int(share * len(self.values)), len(self.values) - 1)]
        # the integer n stands for the interval [n, n + 1)
        high = self.high + 1 if self.integer else self.high
        number = self.low * (high / self.low) ** share if self.log else self.low + (high - self.low) * share
        return min(math.floor(number), int(self.high)) if self.integer else self.rounded(number)

    def rounded(self, number: float) -> float:
        """A number of the interval rounded to :data:`DIGITS` digits, but not out of the interval."""
        return min(max(float(f"{number:.{DIGITS}g}"), self.low), self.high)


@dataclass(frozen=True)
class Space:
    """The search space of one optimizer."""

    optimizer: str
    dimensions: tuple[Dimension, ...]

    @classmethod
    def parse(cls, optimizer: str, entries: Mapping[str, Mapping[str, Any]]) -> Space:
        """Parse a mapping from options to entries of :meth:`Dimension.parse`.

        Raises:
            InputError: naming the first option with a bad entry.
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
        """The rows of space.csv, one per option."""
        return [
            {
                "optimizer": self.optimizer,
                "option": dim.option,
                "low": None if dim.values else dim.low,
                "high": None if dim.values else dim.high,
                "log": None if dim.values else dim.log,
                "integer": None if dim.values else dim.integer,
                "values": show(dim.values) if dim.values else None,
            }
            for dim in self.dimensions
        ]


def overrides_of(point: Mapping[str, Any]) -> list[str]:
    """Settings as overrides of the command line."""
    return [f"{name}={show(value)}" for name, value in point.items()]


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(kw_only=True)
class SpaceSettings:
    """The search space of each optimizer, as configured."""

    name: str
    optimizers: dict[str, dict[str, dict[str, Any]]] = option(
        help="of each, its options with {low, high, log: false, integer: false} or {values: […]}"
    )

    def of(self, optimizer: str) -> Space:
        """The search space of one optimizer.

        Raises:
            InputError: if there is none, or it cannot be parsed.
        """
        if not self.optimizers.get(optimizer):
            raise InputError(
                f"optimizer={optimizer}: space={self.name} has nothing for it; give it a space in a file of "
                "your own, see docs/sweeps.md"
            )
        try:
            return Space.parse(optimizer, self.optimizers[optimizer])
        except InputError as error:
            raise InputError(f"space={self.name}: {error}") from None


Point = dict[str, Any]


@dataclass(frozen=True)
class ScoredPoint:
    """The settings of a trial that has ended, and its score: lower is better, infinite if it diverged.

    ``pruned``: the number of the evaluation at which the trial was pruned, and its score there; else None.
    """

    point: Point
    score: float
    pruned: tuple[int, float] | None = None


class Sampler(ABC):
    """Chooses the settings of trials.

    Args:
        seed: of the random numbers.

    Attributes:
        learns: whether the scores of earlier trials are used.
    """

    learns = True

    def __init__(self, seed: int) -> None:
        self.seed = seed

    @abstractmethod
    def place(self, space: Space, known: Sequence[ScoredPoint], count: int) -> list[Point]:
        """The settings of the next ``count`` trials after those in ``known``."""

    def check(self) -> None:  # noqa: B027 (most need nothing)
        """Check that the sampler works with the installed packages.

        Raises:
            InputError: if it does not.
        """


class SobolSampler(Sampler):
    """Points of a scrambled Sobol sequence, which fill the space more evenly than random points."""

    learns = False

    def place(self, space: Space, known: Sequence[ScoredPoint], count: int) -> list[Point]:
        """See :meth:`Sampler.place`."""
        from scipy.stats.qmc import Sobol

        total = len(known) + count
        sequence = Sobol(len(space.dimensions), seed=np.random.default_rng(self.seed))
        cube = sequence.random_base2(max(total - 1, 0).bit_length())
        return [space.point(shares) for shares in cube[len(known) : total]]


class RandomSampler(Sampler):
    """Independent uniform points."""

    learns = False

    def place(self, space: Space, known: Sequence[ScoredPoint], count: int) -> list[Point]:
        """See :meth:`Sampler.place`."""
        cube = np.random.default_rng(self.seed).random((len(known) + count, len(space.dimensions)))
        return [space.point(shares) for shares in cube[len(known) :]]


class OptunaSampler(Sampler):
    """Optuna's tree-structured Parzen estimator, which samples near the better of the earlier trials."""

    def place(self, space: Space, known: Sequence[ScoredPoint], count: int) -> list[Point]:
        """See :meth:`Sampler.place`."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        # each batch has its own seed, so that a batch that is placed again gets the same numbers
        sampler = optuna.samplers.TPESampler(seed=self.seed + len(known), constant_liar=True)
        study = optuna.create_study(direction="minimize", sampler=sampler)
        distributions = {dim.option: _distribution(dim) for dim in space.dimensions}
        for trial in known:
            params = {dim.option: _to_optuna(dim, trial.point[dim.option]) for dim in space.dimensions}
            study.add_trial(_trial(params, distributions, trial))
        proposals = [study.ask(distributions).params for _ in range(count)]
        return [
            {dim.option: _from_optuna(dim, params[dim.option]) for dim in space.dimensions}
            for params in proposals
        ]

    def check(self) -> None:
        """Optuna must be installed."""
        require_package("tune.sampler=optuna", "optuna", "optuna")


SAMPLERS: dict[str, type[Sampler]] = {"sobol": SobolSampler, "random": RandomSampler, "optuna": OptunaSampler}


def _distribution(dimension: Dimension) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if dimension.values:  # by index, since a value may be a list
        return CategoricalDistribution(range(len(dimension.values)))
    if dimension.integer:
        return IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log)
    return FloatDistribution(dimension.low, dimension.high, log=dimension.log)


def _trial(params: dict[str, Any], distributions: dict[str, Any], known: ScoredPoint) -> Any:
    import optuna

    if known.pruned is None:
        return optuna.trial.create_trial(params=params, distributions=distributions, value=known.score)
    place, score = known.pruned
    return optuna.trial.create_trial(
        state=optuna.trial.TrialState.PRUNED,
        params=params,
        distributions=distributions,
        intermediate_values={place: score},
    )


def _to_optuna(dimension: Dimension, value: Any) -> Any:
    return dimension.values.index(value) if dimension.values else value


def _from_optuna(dimension: Dimension, value: Any) -> Any:
    if dimension.values:
        return dimension.values[value]
    return value if dimension.integer else dimension.rounded(value)
