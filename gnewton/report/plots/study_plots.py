"""Two plots across set-ups: sensitivity to the learning rate, and the performance profile."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from gnewton.report.plots.style import figure, legend_below, log_scale, looks, title
from gnewton.report.studies import Profile, Sensitivity

_MARKED = 0.97  # height at which diverged runs are marked, as a share of the axes

_NAMES = {"target_seconds": "training seconds", "target_steps": "steps", "target_epochs": "epochs"}


def sensitivity_figure(metric: str, methods: Sequence[Sensitivity]) -> Figure | None:
    """Final loss against the learning rate, on log axes, one of the axes for each problem.

    Points are runs, lines go through the medians, triangles at the upper edge are runs that diverged.

    Returns:
        None where no method has runs at several learning rates.
    """
    problems = list(dict.fromkeys(method.problem for method in methods))
    if not problems:
        return None
    made, axes = figure(1, len(problems), width=5.2, height=3.8)
    labels = list(dict.fromkeys(method.label for method in methods))
    styles = dict(zip(labels, looks(len(labels)), strict=True))
    for axis, problem in zip(axes[0], problems, strict=True):
        own = [method for method in methods if method.problem == problem]
        for method in own:
            _draw_method(axis, method, styles[method.label])
        finite = [p for method in own for points in method.points for p in points if math.isfinite(p)]
        log_scale(axis, "x")
        if finite and min(finite) > 0:
            log_scale(axis, "y")
        dampings = {method.option for method in own} != {"optimizer.lr"}
        axis.set_xlabel("learning rate (GroupedNewton: damping λ₁)" if dampings else "learning rate")
        axis.set_ylabel(f"final {metric.replace('_', ' ')}")
        title(axis, problem)
    handles = [Line2D([], [], **styles[label], marker="o", markersize=4) for label in labels]
    if any(math.isinf(p) for method in methods for points in method.points for p in points):
        handles.append(Line2D([], [], color="#555555", linestyle="none", marker="^", markerfacecolor="none"))
        labels.append("diverged or failed")
    legend_below(made, handles, labels)
    return made


def _draw_method(axis: Axes, method: Sensitivity, style: dict[str, Any]) -> None:
    medians = np.array([spread.median for spread in method.losses])
    shown = np.isfinite(medians)
    axis.plot(np.array(method.rates)[shown], medians[shown], **style, linewidth=1.6)
    for rate, points in zip(method.rates, method.points, strict=True):
        finite = [point for point in points if math.isfinite(point)]
        if finite:
            axis.plot([rate] * len(finite), finite, "o", color=style["color"], markersize=3.5, alpha=0.7)
        lost = len(points) - len(finite)
        if lost:
            axis.plot(
                rate,
                _MARKED,
                "^",
                color=style["color"],
                markerfacecolor="none",
                markersize=7,
                transform=axis.get_xaxis_transform(),
                clip_on=False,
            )


def profile_figure(profiles: Sequence[Profile]) -> Figure | None:
    """ρ(τ), the share of instances solved within τ times the best solver's time, one of the axes a measure.

    Returns:
        None where there is no profile.
    """
    if not profiles:
        return None
    made, axes = figure(1, len(profiles), width=5.0, height=3.6)
    solvers = [str(name) for name in profiles[0].ratios.columns]
    widths = np.linspace(4.0 if len(solvers) > 1 else 1.8, 1.5, len(solvers))  # equal ones stay visible
    handles: list[Any] = []
    for axis, profile in zip(axes[0], profiles, strict=True):
        handles = [
            axis.step(*profile.steps(solver, profile.end), where="post", linewidth=width, **style)[0]
            for solver, style, width in zip(solvers, looks(len(solvers)), widths, strict=True)
        ]
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.set_xlim(1, profile.end)
        axis.set_ylim(-0.03, 1.05)
        axis.set_xlabel("factor τ to the fewest " + _NAMES[profile.measure])
        axis.set_ylabel("share of instances")
        count = len(profile.ratios)
        title(axis, f"{_NAMES[profile.measure]}, {count} instance{'s' if count != 1 else ''}")
    legend_below(made, handles, solvers)
    return made
