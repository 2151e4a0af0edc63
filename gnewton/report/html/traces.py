"""What every trace of the page shares: looks, texts and numbers that Plotly and JSON can take."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from typing import Any

from gnewton.report.plots.style import COLORS

Trace = dict[str, Any]

_DASHES = ("solid", "dash", "dot", "dashdot")


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
