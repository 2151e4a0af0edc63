"""What every trace of the page shares: looks, texts and numbers that Plotly and JSON can take."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gnewton.report.plots.style import COLORS

Trace = dict[str, Any]

MOST_POINTS = 400
"""A curve has at most so many points on the page, …"""

FEWEST_POINTS = 40
"""… and is cut to no less than so many, …"""

ALL_POINTS = 500_000
"""… and together they have about so many, so that a browser can still hold the page."""

_DASHES = ("solid", "dash", "dot", "dashdot")


def points_for(curves: int) -> int:
    """How many points each of so many curves may have."""
    return max(FEWEST_POINTS, min(MOST_POINTS, ALL_POINTS // max(curves, 1)))


def thin(x: Any, y: Any, limit: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """At most ``limit`` of the points, evenly chosen, the first and the last among them."""
    x, y = np.asarray(x), np.asarray(y)
    if len(x) <= limit:
        return x, y
    chosen = np.linspace(0, len(x) - 1, limit).round().astype(int)
    return x[chosen], y[chosen]


def look(place: int) -> tuple[str, Trace]:
    """The colour of the line at that place of the legend, and the line."""
    color = COLORS[place % len(COLORS)]
    return color, {"color": color, "dash": _DASHES[place // len(COLORS) % len(_DASHES)]}


def translucent(color: str) -> str:
    """The same colour for a band under its line."""
    red, green, blue = (int(color[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.16)"


def numbers(values: Iterable[float]) -> list[float | None]:
    """Six digits are more than can be seen; JSON knows neither NaN nor infinity: a gap."""
    return [float(f"{value:.6g}") if math.isfinite(value) else None for value in values]


def named(name: str) -> Trace:
    """Name and legend entry of a trace; Plotly takes some HTML in names for markup, the legend none."""
    return {"legendgroup": name, "name": html.escape(name, quote=False)}


def all_positive(traces: Sequence[Trace]) -> bool:
    """Whether the vertical axis may be logarithmic."""
    return all(value is None or value > 0 for trace in traces for value in trace["y"])
