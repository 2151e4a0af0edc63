"""The charts across set-ups: sensitivity to the learning rate, and the performance profile."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from gnewton.report.comparison import Comparison
from gnewton.report.html.traces import Trace, all_positive, look, named, numbers
from gnewton.report.studies import Sensitivity, find_profile, find_sensitivities

_MEASURES = {"target_steps": "steps", "target_seconds": "training seconds"}


def sensitivity_charts(comparison: Comparison) -> list[dict[str, Any]]:
    """Final loss against the learning rate, a chart for each problem that has several rates."""
    metric, methods = find_sensitivities(comparison.setups)
    return [
        _sensitivity(metric, problem, [method for method in methods if method.problem == problem])
        for problem in dict.fromkeys(method.problem for method in methods)
    ]


def _sensitivity(metric: str, problem: str, methods: Sequence[Sensitivity]) -> dict[str, Any]:
    traces: list[Trace] = []
    lost = []
    for place, method in enumerate(methods):
        color, line = look(place)
        pairs = [(rate, p) for rate, points in zip(method.rates, method.points, strict=True) for p in points]
        known = [pair for pair in pairs if math.isfinite(pair[1])]
        shared = named(method.label)
        traces.append(
            {
                **shared,
                "x": method.rates,
                "y": numbers(spread.median for spread in method.losses),
                "mode": "lines",
                "line": {**line, "width": 2.2},
                "hovertemplate": "%{x}: %{y}<extra>%{fullData.name}, median</extra>",
            }
        )
        traces.append(
            {
                **shared,
                "x": [rate for rate, _ in known],
                "y": numbers(point for _, point in known),
                "mode": "markers",
                "marker": {"color": color, "size": 6, "opacity": 0.7},
                "hovertemplate": "%{x}: %{y}<extra>%{fullData.name}</extra>",
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
        "log_y": all_positive(traces),
    }
    return {"title": problem, "section": "Sensitivity to the learning rate", "views": [view], "note": note}


def profile_charts(comparison: Comparison) -> list[dict[str, Any]]:
    """Performance profiles, where set-ups have a target."""
    found = [_profile(comparison, measure, name) for measure, name in _MEASURES.items()]
    return [chart for chart in found if chart is not None]


def _profile(comparison: Comparison, measure: str, name: str) -> dict[str, Any] | None:
    profile = find_profile(comparison, measure)
    if profile is None:
        return None
    up_to = profile.end
    traces: list[Trace] = []
    for place, solver in enumerate(map(str, profile.ratios.columns)):
        x, y = profile.steps(solver, up_to)
        traces.append(
            {
                **named(solver),
                "x": x,
                "y": y,
                "mode": "lines",
                "line": {**look(place)[1], "shape": "hv", "width": 2.4},
                "hovertemplate": "within %{x:.3g}×: %{y:.0%}<extra>%{fullData.name}</extra>",
            }
        )
    count = len(profile.ratios)
    view = {
        "x": f"factor τ to the fewest {name}",
        "y": "share of instances",
        "traces": traces,
        "log_x": True,
        "percent": True,
    }
    title = f"{name}, {count} instance{'s' if count != 1 else ''} (problem and seed)"
    return {"title": title, "section": "Performance profile", "views": [view]}
