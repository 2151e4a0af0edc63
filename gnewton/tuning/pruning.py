"""Pruning: a trial that falls behind the earlier ones of its optimizer is ended before its length is over."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from gnewton.options import show

BOUNDS, METRIC = "trainer.early_stop.bounds", "trainer.early_stop.metric"
"""The options of a run by which it ends itself, so that pruning works with every launcher."""

STARTUP = 4
"""Trials that must have come to their end before the next ones are judged by them."""


@dataclass(frozen=True)
class Course:
    """The evaluations of a trial.

    Attributes:
        values: the metric at the first, second, … evaluation; NaN where it is not finite.
        whole: whether the trial came to its end; a trial that was pruned or diverged did not.
    """

    values: tuple[float, ...]
    whole: bool


class Pruner(ABC):
    """Decides by which values at its evaluations a trial is judged.

    It looks at nothing but the trials placed before, so that a search that is resumed, or runs more jobs at a
    time, prunes the same trials.
    """

    prunes = True

    @abstractmethod
    def bounds(self, earlier: Sequence[Course]) -> list[float]:
        """What the best value so far must not be worse than, at the first, second, … evaluation.

        Args:
            earlier: the trials of the same optimizer that have ended, in the order of their numbers.

        Returns:
            an empty list if the next trials are not judged.
        """

    def overrides(self, earlier: Sequence[Course], metric: str) -> list[str]:
        """The overrides by which the next trials end themselves."""
        bounds = self.bounds(earlier)
        return [f"{METRIC}={metric}", f"{BOUNDS}={show(bounds)}"] if bounds else []


class NoPruner(Pruner):
    """Every trial has its whole length."""

    prunes = False

    def bounds(self, earlier: Sequence[Course]) -> list[float]:
        """None."""
        return []


class MedianPruner(Pruner):
    """Optuna's median rule (``optuna.pruners.MedianPruner``; Golovin et al., Google Vizier, KDD 2017).

    A trial ends at an evaluation where its best value so far is worse than the median of what the earlier
    trials had at this evaluation, counting those that came to their end.
    """

    def bounds(self, earlier: Sequence[Course]) -> list[float]:
        """The medians, once :data:`STARTUP` trials have come to their end."""
        whole = [course.values for course in earlier if course.whole]
        if len(whole) < STARTUP:
            return []
        medians = []
        for values in zip(*whole, strict=False):
            finite = [value for value in values if math.isfinite(value)]
            if not finite:
                break
            medians.append(float(median(finite)))  # every digit: a trial that ties with it goes on
        return medians


PRUNERS: dict[str, type[Pruner]] = {"none": NoPruner, "median": MedianPruner}
