"""Curves over seeds: each run as it is, and the median with its spread where all runs can be compared."""

from __future__ import annotations

import math
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
"""Points at which curves over seconds, whose places differ from run to run, are compared."""


MOST_POINTS = 400
"""A curve is drawn with at most so many points, …"""

FEWEST_POINTS = 40
"""… with fewer where there are many curves, but no fewer than so many, …"""

ALL_POINTS = 400_000
"""… so that together they have about so many, and a browser can still hold the page."""


@dataclass(frozen=True)
class Curve:
    """One metric of one run.

    Attributes:
        x, y: equally long.
        seed: of the run.
        broken: whether the run diverged or failed after the last point.
    """

    x: Array
    y: Array
    seed: int
    broken: bool


@dataclass(frozen=True)
class Band:
    """Median and spread over runs, all equally long; infinite where a run had diverged."""

    x: Array
    median: Array
    low: Array
    high: Array


def curve(run: Run, x: str, y: str) -> Curve:
    """Column ``y`` of metrics.csv over column ``x``, where both are known."""
    if x not in run.metrics or y not in run.metrics:
        known = run.metrics.iloc[:0].assign(**{x: [], y: []})
    else:
        known = run.metrics[np.isfinite(run.metrics[y].astype(float))]
    return Curve(
        known[x].to_numpy(dtype=float), known[y].to_numpy(dtype=float), run.seed, run.status in BROKEN
    )


def curves(setup: Setup, x: str, y: str) -> list[Curve]:
    """The curves of the runs of a set-up that have any point."""
    found = [curve(run, x, y) for run in setup.runs]
    return [entry for entry in found if len(entry.x)]


def band(members: list[Curve], *, worst: float) -> Band | None:
    """Median and spread of several curves, from the last of their starts to the first of their ends.

    A run that broke down does not end the band: from there on it counts as ``worst``. Runs are compared at
    their common places, or, where those differ, on a grid by linear interpolation.

    Args:
        members: at least one curve.
        worst: infinity for a loss, minus infinity for an accuracy.

    Returns:
        None where no place is common to all.
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


def worst_of(metric: str) -> float:
    """What stands for a run that broke down."""
    return -math.inf if metric.endswith("accuracy") else math.inf


def points_for(curves: int, together: int = ALL_POINTS) -> int:
    """How many points each of so many curves may have, so that they have about so many together."""
    return max(FEWEST_POINTS, min(MOST_POINTS, together // max(curves, 1)))


def thin(x: Any, y: Any, limit: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """At most ``limit`` of the points, evenly chosen, the first and the last among them."""
    x, y = np.asarray(x), np.asarray(y)
    if len(x) <= limit:
        return x, y
    chosen = np.linspace(0, len(x) - 1, limit).round().astype(int)
    return x[chosen], y[chosen]
