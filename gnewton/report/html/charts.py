"""The charts of the page as Plotly traces; axes and colours belong to the page, which has two themes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from gnewton.report.comparison import Comparison
from gnewton.report.curves import Band, band, curves, points_for, thin, worst_of
from gnewton.report.html.studies import profile_charts, sensitivity_charts
from gnewton.report.html.traces import (
    Trace,
    all_positive,
    look,
    named,
    numbers,
    translucent,
)
from gnewton.report.runs import median_rates
from gnewton.report.setups import Setup
from gnewton.runfiles import SCORES

X_AXES = {"epoch": "epochs", "step": "steps", "train_seconds": "training seconds"}

_FIRST = ("validation loss", "train loss")  # what is shown before the reader chooses


def all_charts(comparison: Comparison) -> list[dict[str, Any]]:
    """Every chart: id, title, section, note, and its views: traces, axis titles, how the axes start.

    A chart with several views lets the reader choose the metric and the horizontal axis.
    """
    runs = sum(len(setup.runs) + 3 for setup in comparison.setups)  # 3: the band and its median
    limit = points_for(runs * len(SCORES) * len(X_AXES))
    charts = [_progress(comparison.of_problem(problem), problem, limit) for problem in comparison.problems]
    charts += _all_rates(comparison.setups)
    charts += sensitivity_charts(comparison)
    charts += profile_charts(comparison)
    return [{"id": f"chart{number}", **chart} for number, chart in enumerate(charts) if chart["views"]]


def _progress(setups: Sequence[Setup], problem: str, limit: int) -> dict[str, Any]:
    views = []
    for metric in SCORES:
        for x, name in X_AXES.items():
            traces = [
                trace
                for place, setup in enumerate(setups)
                for trace in _progress_traces(setup, x, metric, place, limit)
            ]
            if traces:
                views.append(
                    {
                        "metric": metric.replace("_", " "),
                        "axis": name,
                        "x": name,
                        "y": metric.replace("_", " "),
                        "traces": traces,
                        "log_y": metric.endswith("loss") and all_positive(traces),
                        "percent": metric.endswith("accuracy"),
                    }
                )
    views.sort(key=lambda view: _FIRST.index(view["metric"]) if view["metric"] in _FIRST else len(_FIRST))
    longest = max(len(run.metrics) for setup in setups for run in setup.runs)
    return {"title": problem, "section": "Progress", "views": views, "note": _thinned(longest, limit)}


def _thinned(longest: int, limit: int) -> str:
    if longest <= limit:
        return ""
    return f"Curves of more than {limit} points are drawn at {limit} of them; the CSV files have all."


def _progress_traces(setup: Setup, x: str, metric: str, place: int, limit: int) -> list[Trace]:
    members = curves(setup, x, metric)
    if not members:
        return []
    color, line = look(place)
    shared = named(setup.solver)
    several = len(members) > 1
    traces: list[Trace] = []
    for member in members:
        own_x, own_y = thin(member.x, member.y, limit)
        traces.append(
            {
                **shared,
                "x": numbers(own_x),
                "y": numbers(own_y),
                **_marks(len(own_x), color, dots=not several and len(own_x) < 60, cross=member.broken),
                "line": {**line, "width": 0.7 if several else 2},
                "opacity": 0.45 if several else 1,
                "hovertemplate": f"seed {member.seed}: %{{y}}<extra>%{{fullData.name}}</extra>",
            }
        )
    found = band(members, worst=worst_of(metric)) if several else None
    if found is not None:
        traces += _band_traces(found, shared, color, line, limit)
    return traces


def _marks(count: int, color: str, *, dots: bool, cross: bool) -> Trace:
    """How the points of a run are marked: with dots or not, and the last with a cross where it broke down."""
    size = 4 if dots or count == 1 else 0
    if not size and not cross:
        return {"mode": "lines"}
    if not cross:
        return {"mode": "lines+markers", "marker": {"size": size, "color": color}}
    symbols, sizes = ["circle"] * (count - 1) + ["x"], [size] * (count - 1) + [9]
    return {"mode": "lines+markers", "marker": {"symbol": symbols, "size": sizes, "color": color}}


def _band_traces(found: Band, shared: Trace, color: str, line: Trace, limit: int) -> list[Trace]:
    filled = np.isfinite(found.low) & np.isfinite(found.high)
    x, low = thin(found.x[filled], found.low[filled], limit)
    _, high = thin(found.x[filled], found.high[filled], limit)
    outline: Trace = {
        **shared,
        "x": numbers([*x, *x[::-1]]),
        "y": numbers([*high, *low[::-1]]),
        "fill": "toself",
        "fillcolor": translucent(color),
        "mode": "none",
        "hoverinfo": "skip",
    }
    x, middle = thin(found.x, found.median, limit)
    median: Trace = {
        **shared,
        "x": numbers(x),
        "y": numbers(middle),
        "mode": "lines+markers" if len(x) == 1 else "lines",
        "line": {**line, "width": 2.4},
        "hovertemplate": "median: %{y}<extra>%{fullData.name}</extra>",
    }
    return [outline, median]


def _all_rates(setups: Sequence[Setup]) -> list[dict[str, Any]]:
    tables = []
    for setup in setups:
        members = [run.rates for run in setup.runs if run.rates is not None]
        rates = median_rates(members)
        if rates is not None:
            over = f", median of {len(members)} runs" if len(members) > 1 else ""
            tables.append((f"{setup.label}{over}", rates, setup.last_step))
    limit = points_for(sum(len(rates.columns) for _, rates, _ in tables))
    return [_rates(*entry, limit) for entry in tables]


def _rates(title: str, rates: pd.DataFrame, end: float, limit: int) -> dict[str, Any]:
    traces: list[Trace] = []
    for place, group in enumerate(rates.columns):
        x, y = thin(rates.index, rates[group], limit)
        traces.append(
            {
                **named(str(group)),
                "x": numbers([*x, max(end, x[-1])]),  # the last rates hold up to the end
                "y": numbers([*y, y[-1]]),
                "mode": "lines",
                "line": {**look(place)[1], "shape": "hv", "width": 1.8},
                "hovertemplate": "step %{x}: %{y}<extra>%{fullData.name}</extra>",
            }
        )
    view = {"x": "steps", "y": "learning rate of the group", "traces": traces, "log_y": True}
    zero = (
        "A rate that is not positive has no place on the logarithmic axis."
        if (rates <= 0).any(axis=None)
        else ""
    )
    note = " ".join(text for text in (zero, _thinned(len(rates), limit)) if text)
    return {"title": title, "section": "Rates of the groups", "views": [view], "note": note}
