"""Curves over seeds: the curve of each run, and the median with its spread over the common range."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gnewton.report.measures import median_and_spread
from gnewton.report.runs import Run
from gnewton.report.setups import Setup
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
