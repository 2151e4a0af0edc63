"""Samplers: where the next trials of an optimizer are placed, given how those before ended.

Each is a function of its arguments alone, so that a search that is taken up places the same trials.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gnewton.errors import InputError
from gnewton.tuning.space import Dimension, Space

Point = dict[str, Any]


@dataclass(frozen=True)
class Known:
    """A trial that has ended: its settings and its score, less is better, infinite where it diverged."""

    point: Point
    score: float


class Sampler(ABC):
    """Places trials.

    Args:
        seed: of its random numbers.
        batch: how many trials are placed at a time, by samplers that learn from those before.
    """

    learns = True

    def __init__(self, seed: int, batch: int) -> None:
        self.seed = seed
        self.batch = batch

    def at_a_time(self, trials: int) -> int:
        """How many trials are placed at a time; all of them where nothing is learned from the others."""
        return self.batch if self.learns else trials

    @abstractmethod
    def place(self, space: Space, known: Sequence[Known], count: int) -> list[Point]:
        """The next ``count`` trials after those in ``known``."""

    def check(self) -> None:  # noqa: B027 (most need nothing)
        """Make sure that it can work here.

        Raises:
            InputError: if it cannot.
        """


class Sobol(Sampler):
    """Points of a scrambled Sobol sequence: they fill the space more evenly than random ones."""

    learns = False

    def place(self, space: Space, known: Sequence[Known], count: int) -> list[Point]:
        """See :meth:`Sampler.place`."""
        from scipy.stats.qmc import Sobol as Sequence_

        total = len(known) + count
        sequence = Sequence_(len(space.dimensions), seed=np.random.default_rng(self.seed))
        cube = sequence.random_base2(max(total - 1, 0).bit_length())
        return [space.point(shares) for shares in cube[len(known) : total]]


class Random(Sampler):
    """Independent uniform points."""

    learns = False

    def place(self, space: Space, known: Sequence[Known], count: int) -> list[Point]:
        """See :meth:`Sampler.place`."""
        cube = np.random.default_rng(self.seed).random((len(known) + count, len(space.dimensions)))
        return [space.point(shares) for shares in cube[len(known) :]]


class Optuna(Sampler):
    """Optuna's tree-structured Parzen estimator, which looks near the better of the trials before."""

    def place(self, space: Space, known: Sequence[Known], count: int) -> list[Point]:
        """See :meth:`Sampler.place`."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        # a seed of its own for each batch: one that is placed again gets the same numbers
        sampler = optuna.samplers.TPESampler(seed=self.seed + len(known), constant_liar=True)
        study = optuna.create_study(direction="minimize", sampler=sampler)
        there = {each.option: _distribution(each) for each in space.dimensions}
        for trial in known:
            inner = {each.option: _to_optuna(each, trial.point[each.option]) for each in space.dimensions}
            study.add_trial(optuna.trial.create_trial(params=inner, distributions=there, value=trial.score))
        asked = [study.ask(there).params for _ in range(count)]
        return [
            {each.option: _from_optuna(each, params[each.option]) for each in space.dimensions}
            for params in asked
        ]

    def check(self) -> None:
        """Optuna must be installed."""
        try:
            import optuna  # noqa: F401
        except ImportError:
            raise InputError(
                "tune.sampler=optuna: needs the package optuna; install it with pip install 'gnewton[optuna]'"
            ) from None


SAMPLERS: dict[str, type[Sampler]] = {"sobol": Sobol, "random": Random, "optuna": Optuna}


def _distribution(dimension: Dimension) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if dimension.values:  # by their numbers: a value may be a list
        return CategoricalDistribution(range(len(dimension.values)))
    if dimension.integer:
        return IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log)
    return FloatDistribution(dimension.low, dimension.high, log=dimension.log)


def _to_optuna(dimension: Dimension, value: Any) -> Any:
    return dimension.values.index(value) if dimension.values else value


def _from_optuna(dimension: Dimension, value: Any) -> Any:
    if dimension.values:
        return dimension.values[value]
    return value if dimension.integer else dimension.rounded(value)
