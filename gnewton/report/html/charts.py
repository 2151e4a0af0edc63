"""The charts of the page as Plotly traces; axes and colours belong to the page, which has two themes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from gnewton.report.comparison import Comparison
from gnewton.report.curves import Band, band, curves, worst_of
from gnewton.report.plots.rates import median_rates
from gnewton.report.plots.style import COLORS
from gnewton.report.profile import find_profile
from gnewton.report.sensitivity import Sensitivity, find_sensitivities
from gnewton.report.setups import Setup
from gnewton.training.settings import METRICS

X_AXES = {"epoch": "epochs", "step": "steps", "train_seconds": "training seconds"}

_DASHES = ("solid", "dash", "dot", "dashdot")

Trace = dict[str, Any]


def all_charts(comparison: Comparison) -> list[dict[str, Any]]:
    """Every chart: id, title, traces by view, axis titles, and whether the axes start logarithmic.

    A chart with several views lets the reader choose the metric and the horizontal axis.
    """
    charts = [_progress(comparison.of_problem(problem), problem) for problem in comparison.problems]
    charts += [chart for setup in comparison.setups if (chart := _rates(setup)) is not None]
    metric, methods = find_sensitivities(comparison.setups)
    charts += [
        _sensitivity(metric, problem, [method for method in methods if method.problem == problem])
        for problem in dict.fromkeys(method.problem for method in methods)
    ]
    charts += [
        chart
        for measure, name in (("target_steps", "steps"), ("target_seconds", "training seconds"))
        if (chart := _profile(comparison, measure, name)) is not None
    ]
    return [{"id": f"chart{number}", **chart} for number, chart in enumerate(charts) if chart["views"]]


def _progress(setups: Sequence[Setup], problem: str) -> dict[str, Any]:
    views = []
    for metric in METRICS:
        for x, name in X_AXES.items():
            traces = [
                trace
                for place, setup in enumerate(setups)
                for trace in _progress_traces(setup, x, metric, place)
            ]
            if traces:
                views.append(
                    {
                        "metric": metric.replace("_", " "),
                        "axis": name,
                        "x": name,
                        "y": metric.replace("_", " "),
                        "traces": traces,
                        "log_y": metric.endswith("loss") and _all_positive(traces),
                        "percent": metric.endswith("accuracy"),
                    }
                )
    preferred = ("validation loss", "train loss")
    views.sort(key=lambda view: preferred.index(view["metric"]) if view["metric"] in preferred else 9)
    return {"title": problem, "section": "Progress", "views": views}


def _progress_traces(setup: Setup, x: str, metric: str, place: int) -> list[Trace]:
    members = curves(setup, x, metric)
    if not members:
        return []
    color, line = _look(place)
    shared = {"legendgroup": setup.label, "name": setup.label}
    several = len(members) > 1
    traces: list[Trace] = [
        {
            **shared,
            "x": _numbers(member.x),
            "y": _numbers(member.y),
            "mode": "lines+markers",
            "marker": {
                "symbol": ["circle"] * (len(member.x) - 1) + ["x" if member.broken else "circle"],
                "size": [4 if not several else 0.1] * (len(member.x) - 1)
                + [9 if member.broken else 0.1 if several else 4],
                "color": color,
            },
            "line": {**line, "width": 0.7 if several else 2},
            "opacity": 0.45 if several else 1,
            "showlegend": not several,
            "hovertemplate": f"seed {member.seed}: %{{y}}<extra>{setup.label}</extra>",
        }
        for member in members
    ]
    found = band(members, worst=worst_of(metric)) if several else None
    if found is not None:
        traces += _band_traces(found, shared, color, line)
    elif several:
        traces[0]["showlegend"] = True
    return traces


def _band_traces(found: Band, shared: Trace, color: str, line: Trace) -> list[Trace]:
    filled = np.isfinite(found.low) & np.isfinite(found.high)
    x, low, high = found.x[filled], found.low[filled], found.high[filled]
    outline: Trace = {
        **shared,
        "x": [*_numbers(x), *_numbers(x[::-1])],
        "y": [*_numbers(high), *_numbers(low[::-1])],
        "fill": "toself",
        "fillcolor": _translucent(color),
        "mode": "none",
        "hoverinfo": "skip",
        "showlegend": False,
    }
    median: Trace = {
        **shared,
        "x": _numbers(found.x),
        "y": _numbers(found.median),
        "mode": "lines",
        "line": {**line, "width": 2.4},
        "hovertemplate": f"median: %{{y}}<extra>{shared['name']}</extra>",
    }
    return [outline, median]


def _rates(setup: Setup) -> dict[str, Any] | None:
    found = median_rates(setup)
    if found is None:
        return None
    rates, runs = found
    traces: list[Trace] = [
        {
            "name": str(group),
            "x": [int(step) for step in rates.index],
            "y": _numbers(rates[group].to_numpy(dtype=float)),
            "mode": "lines",
            "line": {**_look(place)[1], "shape": "hv", "width": 1.8},
            "hovertemplate": f"step %{{x}}: %{{y}}<extra>{group}</extra>",
        }
        for place, group in enumerate(rates.columns)
    ]
    over = f", median of {runs} runs" if runs > 1 else ""
    view = {"x": "steps", "y": "learning rate of the group", "traces": traces, "log_y": True}
    note = "A rate of 0 has no place on the logarithmic axis." if (rates.to_numpy() <= 0).any() else ""
    return {"title": f"{setup.label}{over}", "section": "Rates of the groups", "views": [view], "note": note}


def _sensitivity(metric: str, problem: str, methods: Sequence[Sensitivity]) -> dict[str, Any]:
    traces: list[Trace] = []
    lost = []
    for place, method in enumerate(methods):
        color, line = _look(place)
        pairs = [(rate, p) for rate, points in zip(method.rates, method.points, strict=True) for p in points]
        shared = {"legendgroup": method.label, "name": method.label}
        medians = np.array([spread.median for spread in method.losses])
        traces.append(
            {
                **shared,
                "x": method.rates,
                "y": _numbers(medians),
                "mode": "lines",
                "line": {**line, "width": 2.2},
                "hovertemplate": f"%{{x}}: %{{y}}<extra>{method.label}, median</extra>",
            }
        )
        traces.append(
            {
                **shared,
                "x": [rate for rate, point in pairs if math.isfinite(point)],
                "y": [point for _, point in pairs if math.isfinite(point)],
                "mode": "markers",
                "marker": {"color": color, "size": 6, "opacity": 0.7},
                "showlegend": False,
                "hovertemplate": f"%{{x}}: %{{y}}<extra>{method.label}</extra>",
            }
        )
        lost += [f"{method.label} at {rate:g}" for rate, point in pairs if math.isinf(point)]
    counts = {text: lost.count(text) for text in dict.fromkeys(lost)}
    note = "Diverged or failed: " + ", ".join(f"{text} ({n})" for text, n in counts.items()) if counts else ""
    dampings = any(method.option != "optimizer.lr" for method in methods)
    view = {
        "x": "learning rate (GroupedNewton: damping λ₁)" if dampings else "learning rate",
        "y": f"final {metric.replace('_', ' ')}",
        "traces": traces,
        "log_x": True,
        "log_y": _all_positive(traces),
    }
    return {"title": problem, "section": "Sensitivity to the learning rate", "views": [view], "note": note}


def _profile(comparison: Comparison, measure: str, name: str) -> dict[str, Any] | None:
    profile = find_profile(comparison, measure)
    if profile is None:
        return None
    up_to = max(2.0, 1.15 * profile.largest)
    traces: list[Trace] = []
    for place, solver in enumerate(map(str, profile.ratios.columns)):
        x, y = profile.steps(solver, up_to)
        traces.append(
            {
                "name": solver,
                "x": x,
                "y": y,
                "mode": "lines",
                "line": {**_look(place)[1], "shape": "hv", "width": 2.4},
                "hovertemplate": f"within %{{x:.3g}}×: %{{y:.0%}}<extra>{solver}</extra>",
            }
        )
    count = len(profile.ratios)
    view = {
        "x": f"factor to the fewest {name}",
        "y": "share of instances",
        "traces": traces,
        "log_x": True,
        "percent": True,
    }
    title = f"{name}, {count} instance{'s' if count != 1 else ''} (problem and seed)"
    return {"title": title, "section": "Performance profile", "views": [view]}


def _look(place: int) -> tuple[str, Trace]:
    color = COLORS[place % len(COLORS)]
    return color, {"color": color, "dash": _DASHES[place // len(COLORS) % len(_DASHES)]}


def _translucent(color: str) -> str:
    red, green, blue = (int(color[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.16)"


def _numbers(values: Any) -> list[float | None]:
    """For JSON, which knows neither NaN nor infinity: a gap."""
    return [float(value) if math.isfinite(value) else None for value in values]


def _all_positive(traces: Sequence[Trace]) -> bool:
    return all(value is None or value > 0 for trace in traces for value in trace["y"])
