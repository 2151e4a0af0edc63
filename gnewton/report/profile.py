"""Performance profiles (Dolan & Moré, Math. Program. 91, 2002): how often a solver is how near the best."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from gnewton.report.comparison import Comparison


@dataclass(frozen=True)
class Profile:
    """Ratios of every solver to the best, on the instances that all of them ran.

    Attributes:
        measure: what is compared, such as "target_seconds".
        ratios: one row per instance (problem, target and seed), one column per solver; infinite where it
            missed.
    """

    measure: str
    ratios: pd.DataFrame

    def share(self, solver: str, factor: float) -> float:
        """ρ_s(τ): the share of instances on which the solver took at most ``factor`` times the best."""
        return float((self.ratios[solver] <= factor).mean())

    def steps(self, solver: str, up_to: float) -> tuple[list[float], list[float]]:
        """The step function ρ_s from 1 to ``up_to``: where it rises, and to what."""
        rises = sorted({1.0, *(r for r in self.ratios[solver] if math.isfinite(r)), up_to})
        rises = [rise for rise in rises if rise <= up_to]
        return rises, [self.share(solver, rise) for rise in rises]

    @property
    def largest(self) -> float:
        """The largest finite ratio."""
        finite = [value for value in self.ratios.to_numpy().ravel().tolist() if math.isfinite(value)]
        return max(finite, default=1.0)

    @property
    def end(self) -> float:
        """Where a picture of it ends: a little beyond the last rise, and far enough to see one."""
        return max(2.0, 1.15 * self.largest)


def find_profile(comparison: Comparison, measure: str) -> Profile | None:
    """The profile of the solvers' way to the target.

    An instance is a problem with a target and a seed. It counts if all solvers ran it and one of them at
    least reached the target.

    Args:
        comparison: with targets.
        measure: "target_seconds", "target_steps" or "target_epochs".

    Returns:
        None if there are fewer than two solvers, or no instance counts.
    """
    solvers = {setup.label: setup.solver for setup in comparison.setups}
    runs = comparison.runs.assign(solver=comparison.runs["setup"].map(solvers))
    names: Sequence[str] = list(dict.fromkeys(runs["solver"]))
    table = runs.pivot_table(
        index=["problem", "target", "seed"], columns="solver", values=measure, aggfunc="last", dropna=False
    ).reindex(columns=names)
    table = table.dropna()
    best = table.min(axis=1)
    usable = best.map(math.isfinite) & (best > 0)
    if len(names) < 2 or not usable.any():
        return None
    return Profile(measure, table[usable].div(best[usable], axis=0))
