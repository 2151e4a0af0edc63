"""Samplers: the settings of the next trials of an optimizer, given the scores of the earlier ones.

A sampler depends on nothing but its arguments, so that a resumed search places the same trials.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gnewton.sweep.launchers.launcher import require_package
from gnewton.tuning.space import Dimension, Space

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
