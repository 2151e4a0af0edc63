"""What the plots draw: curves over seeds, the sensitivity to the learning rate, and performance profiles.

Performance profiles follow Dolan and Moré, Mathematical Programming 91, 2002.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from gnewton.report.comparison import Comparison
from gnewton.report.measures import Spread, measure_run, median_and_spread
from gnewton.report.runs import Run
from gnewton.report.setups import Setup, distinguish, identity
from gnewton.runfiles import BROKEN

Array = npt.NDArray[np.float64]

GRID = 200
"""Number of points of the grid for curves over seconds, whose abscissae differ from run to run."""


MOST_POINTS, FEWEST_POINTS = 400, 40
"""Bounds on the number of points with which a curve is drawn."""

ALL_POINTS = 150_000
"""Points of all curves of a figure together, about: an SVG file holds each of them."""


@dataclass(frozen=True)
class Curve:
    """One metric of one run.

    Attributes:
        x, y: coordinates.
        seed: of the run.
        broken: whether the run diverged or failed after the last point.
    """

    x: Array
    y: Array
    seed: int
    broken: bool


@dataclass(frozen=True)
class Band:
    """Median and spread over runs at the abscissae ``x``; infinite where too many runs had diverged."""

    x: Array
    median: Array
    low: Array
    high: Array


def curve(run: Run, x: str, y: str) -> Curve:
    """Column ``y`` of metrics.csv over column ``x``, at the rows in which ``y`` is finite."""
    if x not in run.metrics or y not in run.metrics:
        known = run.metrics.iloc[:0].assign(**{x: [], y: []})
    else:
        known = run.metrics[np.isfinite(run.metrics[y].astype(float))]
    return Curve(
        known[x].to_numpy(dtype=float), known[y].to_numpy(dtype=float), run.seed, run.status in BROKEN
    )


def curves(setup: Setup, x: str, y: str) -> list[Curve]:
    """The curves of the runs of a set-up, without empty ones."""
    members = [curve(run, x, y) for run in setup.runs]
    return [member for member in members if len(member.x)]


def step_curves(setup: Setup) -> list[Curve]:
    """The training loss by step of the runs of a set-up (steps.csv), without empty ones."""
    members = [
        Curve(
            run.steps["step"].to_numpy(dtype=float),
            run.steps["loss"].to_numpy(dtype=float),
            run.seed,
            run.status in BROKEN,
        )
        for run in setup.runs
    ]
    return [member for member in members if len(member.x)]


def band(members: list[Curve], *, worst: float) -> Band | None:
    """Median and spread of several curves, from their latest start to their earliest end.

    A run that diverged or failed does not end the band: after its end it counts as ``worst``. Runs are
    compared at their common abscissae or, if these differ, on a grid by linear interpolation.

    Args:
        members: at least one curve.
        worst: infinity for a loss, minus infinity for an accuracy.

    Returns:
        None if the curves have no common range.
    """
    whole = [member for member in members if not member.broken] or members
    start = max(float(member.x[0]) for member in members)
    stop = min(float(member.x[-1]) for member in whole)
    if start > stop:
        return None
    places = {tuple(member.x[(member.x >= start) & (member.x <= stop)]) for member in whole}
    x = np.array(places.pop()) if len(places) == 1 else np.linspace(start, stop, GRID)
    values = np.stack([_at(member, x, worst) for member in members])
    return Band(x, *median_and_spread(values))


def _at(member: Curve, x: Array, worst: float) -> Array:
    values = np.interp(x, member.x, member.y)
    values[x > member.x[-1]] = worst
    return values


def points_for(curves: int, together: int = ALL_POINTS) -> int:
    """The number of points for each of ``curves`` curves, so that they have about ``together`` in total."""
    return max(FEWEST_POINTS, min(MOST_POINTS, together // max(curves, 1)))


def thin(x: Any, y: Any, limit: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """At most ``limit`` points, evenly chosen, including the first and the last."""
    x, y = np.asarray(x), np.asarray(y)
    if len(x) <= limit:
        return x, y
    chosen = np.linspace(0, len(x) - 1, limit).round().astype(int)
    return x[chosen], y[chosen]


RATE_OPTIONS = ("optimizer.lr", "optimizer.step_size")
"""Options that scale the steps: the learning rate, and the step size λ₁ of GroupedNewton."""

LOSSES = ("validation_loss", "train_loss", "test_loss")
"""Losses in the order of preference; the first that was measured is compared."""


@dataclass(frozen=True)
class Sensitivity:
    """One method at several learning rates, on one problem.

    Attributes:
        label: of the method.
        problem: what it solves.
        option: which of :data:`RATE_OPTIONS` varies.
        rates: in increasing order.
        losses: the spread of the final loss at each rate.
        points: the final loss of each run at each rate; infinite if it diverged or failed.
    """

    label: str
    problem: str
    option: str
    rates: list[float]
    losses: list[Spread]
    points: list[list[float]]


def find_sensitivities(setups: Iterable[Setup]) -> tuple[str, list[Sensitivity]]:
    """The methods with runs at two learning rates or more.

    Returns:
        the metric that is compared, and the methods.
    """
    setups = list(setups)
    metric = next((name for name in LOSSES if _measured(setups, name)), LOSSES[0])
    families: dict[str, list[Setup]] = {}
    for setup in setups:
        option = _option(setup)
        if option is not None:
            rest = {key: value for key, value in setup.options.items() if key != option}
            families.setdefault(identity(rest), []).append(setup)
    several = [family for family in families.values() if len(family) > 1]
    labels = _labels(several)
    return metric, [
        _sensitivity(family, label, metric) for family, label in zip(several, labels, strict=True)
    ]


def _labels(families: Sequence[Sequence[Setup]]) -> list[str]:
    options = [
        {
            key: value
            for key, value in family[0].options.items()
            if key not in RATE_OPTIONS and key.split(".")[0] not in ("model", "data", "name")
        }
        for family in families
    ]
    return distinguish(options, always=("optimizer.name",))


def _sensitivity(family: Sequence[Setup], label: str, metric: str) -> Sensitivity:
    option = str(_option(family[0]))
    ordered = sorted(family, key=lambda setup: float(setup.options[option]))
    points = [
        [value for run in setup.runs if not math.isnan(value := measure_run(run, None)[metric])]
        for setup in ordered
    ]
    return Sensitivity(
        label,
        family[0].problem,
        option,
        [float(setup.options[option]) for setup in ordered],
        [Spread.over(values) for values in points],
        points,
    )


def _option(setup: Setup) -> str | None:
    return next(
        (
            option
            for option in RATE_OPTIONS
            if isinstance(setup.options.get(option), (int, float)) and setup.options[option] > 0
        ),
        None,
    )


def _measured(setups: Sequence[Setup], metric: str) -> bool:
    return any(
        run.status not in BROKEN and math.isfinite(measure_run(run, None)[metric])
        for setup in setups
        for run in setup.runs
    )


@dataclass(frozen=True)
class Profile:
    """The cost of every solver relative to the best one, on the instances that all of them ran.

    Attributes:
        measure: the cost, such as "target_seconds".
        ratios: one row per instance (problem, target and seed), one column per solver; infinite for a miss.
    """

    measure: str
    ratios: pd.DataFrame

    def share(self, solver: str, factor: float) -> float:
        """ρ_s(τ): the share of instances on which the solver took at most ``factor`` times the best."""
        return float((self.ratios[solver] <= factor).mean())

    def steps(self, solver: str, up_to: float) -> tuple[list[float], list[float]]:
        """The step function ρ_s from 1 to ``up_to``: the abscissae of its steps, and its values there."""
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
        """The right end of a plot: a little beyond the last step, and at least 2."""
        return max(2.0, 1.15 * self.largest)


def find_profile(comparison: Comparison, measure: str) -> Profile | None:
    """The performance profile of the cost of reaching the target.

    An instance is a problem with a target and a seed. It counts if all solvers ran it and at least one of
    them reached the target.

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
