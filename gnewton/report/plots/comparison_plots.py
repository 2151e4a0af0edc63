"""All plots of a comparison, as image files and for the page; sensitivity and profiles are drawn here."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from gnewton.report.comparison import Comparison
from gnewton.report.curves import Profile, Sensitivity, find_profile, find_sensitivities
from gnewton.report.plots.style import figure, legend_below, log_scale, looks, save, series, slug, title
from gnewton.report.plots.training_plots import X_AXES, progress_figure, rates_figure, step_figure

_LOST_HEIGHT = 0.97  # where diverged runs are marked, as a share of the height of the axes

_COSTS = {
    "target_seconds": ("fewest", "training seconds"),
    "target_steps": ("fewest", "steps"),
    "target_epochs": ("fewest", "epochs"),
    "train_loss": ("least", "final training loss"),
}
"""What a profile compares, in words: the best of it, and its name."""


def sensitivity_figure(metric: str, methods: Sequence[Sensitivity]) -> Figure | None:
    """Final loss against the learning rate on logarithmic axes, one axes per problem.

    Points are runs, lines connect the medians, triangles at the upper edge are runs that diverged or failed.

    Returns:
        None if no method has runs at several learning rates.
    """
    problems = list(dict.fromkeys(method.problem for method in methods))
    if not problems:
        return None
    canvas, axes = figure(1, len(problems), width=5.2, height=3.8)
    labels = list(dict.fromkeys(method.label for method in methods))
    styles = {
        label: {**look, "gid": series(place)}
        for place, (label, look) in enumerate(zip(labels, looks(len(labels)), strict=True))
    }
    for axis, problem in zip(axes[0], problems, strict=True):
        shown = [method for method in methods if method.problem == problem]
        for method in shown:
            _draw_method(axis, method, styles[method.label])
        finite = [p for method in shown for points in method.points for p in points if math.isfinite(p)]
        log_scale(axis, "x")
        if finite and min(finite) > 0:
            log_scale(axis, "y")
        step_sizes = {method.option for method in shown} != {"optimizer.lr"}
        axis.set_xlabel("learning rate (GroupedNewton: step size λ₁)" if step_sizes else "learning rate")
        axis.set_ylabel(f"final {metric.replace('_', ' ')}")
        title(axis, problem)
    handles = [Line2D([], [], **styles[label], marker="o", markersize=4) for label in labels]
    if any(math.isinf(p) for method in methods for points in method.points for p in points):
        handles.append(Line2D([], [], color="#555555", linestyle="none", marker="^", markerfacecolor="none"))
        labels.append("diverged or failed")
    legend_below(canvas, handles, labels)
    return canvas


def _draw_method(axis: Axes, method: Sensitivity, style: dict[str, Any]) -> None:
    medians = np.array([spread.median for spread in method.losses])
    finite_medians = np.isfinite(medians)
    axis.plot(np.array(method.rates)[finite_medians], medians[finite_medians], **style, linewidth=1.6)
    for rate, points in zip(method.rates, method.points, strict=True):
        finite = [point for point in points if math.isfinite(point)]
        if finite:
            axis.plot(
                [rate] * len(finite),
                finite,
                "o",
                color=style["color"],
                gid=style["gid"],
                markersize=3.5,
                alpha=0.7,
            )
        lost = len(points) - len(finite)
        if lost:
            axis.plot(
                rate,
                _LOST_HEIGHT,
                "^",
                color=style["color"],
                gid=style["gid"],
                markerfacecolor="none",
                markersize=7,
                transform=axis.get_xaxis_transform(),
                clip_on=False,
            )


def profile_figure(profiles: Sequence[Profile]) -> Figure | None:
    """ρ(τ), the share of instances solved within τ times the best solver's cost; one axes per measure.

    Returns:
        None without profiles.
    """
    if not profiles:
        return None
    canvas, axes = figure(1, len(profiles), width=5.0, height=3.6)
    solvers = [str(name) for name in profiles[0].ratios.columns]
    widths = np.linspace(
        4.0 if len(solvers) > 1 else 1.8, 1.5, len(solvers)
    )  # curves that coincide stay visible
    handles: list[Any] = []
    for axis, profile in zip(axes[0], profiles, strict=True):
        handles = [
            axis.step(
                *profile.steps(solver, profile.end), where="post", linewidth=width, gid=series(place), **style
            )[0]
            for place, (solver, style, width) in enumerate(
                zip(solvers, looks(len(solvers)), widths, strict=True)
            )
        ]
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.set_xlim(1, profile.end)
        axis.set_ylim(-0.03, 1.05)
        best, cost = _COSTS[profile.measure]
        axis.set_xlabel(f"factor τ to the {best} {cost}")
        axis.set_ylabel("share of instances")
        count = len(profile.ratios)
        title(axis, f"{cost}, {count} instance{'s' if count != 1 else ''}")
    legend_below(canvas, handles, solvers)
    return canvas


@dataclass(frozen=True)
class Plot:
    """A figure of a comparison.

    Attributes:
        stem: file name without suffix.
        section: heading under which the page shows it.
        title: caption on the page.
        figure: the figure.
        axis: label of the horizontal axis, if other plots of the same title have another one; else empty.
        note: remark below the figure on the page.
    """

    stem: str
    section: str
    title: str
    figure: Figure
    axis: str = ""
    note: str = ""


def comparison_plots(comparison: Comparison) -> Iterator[Plot]:
    """Every plot for which the comparison has data."""
    several = len(comparison.problems) > 1
    for problem in comparison.problems:
        suffix = f"_{slug(problem)}" if several else ""
        for x, name in X_AXES.items():
            figure = progress_figure(comparison.of_problem(problem), x, problem)
            if figure is not None:
                stem = f"progress_{name.rpartition(' ')[2]}{suffix}"
                yield Plot(stem, "Progress", problem, figure, axis=name)
        figure = step_figure(comparison.of_problem(problem), problem)
        if figure is not None:
            yield Plot(f"progress_steps{suffix}", "Training loss by step", problem, figure)
    for setup in comparison.setups:
        figure = rates_figure(setup)
        if figure is not None:
            yield Plot(f"rates_{slug(setup.label)}", "Rates of the groups", setup.label, figure)
    metric, methods = find_sensitivities(comparison.setups)
    figure = sensitivity_figure(metric, methods)
    if figure is not None:
        title = "Sensitivity to the learning rate"
        yield Plot(
            "sensitivity", title, f"final {metric.replace('_', ' ')}", figure, note=_lost_runs(methods)
        )
    profiles = [find_profile(comparison, measure) for measure in ("target_steps", "target_seconds")]
    figure = profile_figure([profile for profile in profiles if profile is not None])
    if figure is not None:
        yield Plot("profile", "Performance profile", "instances are pairs of a problem and a seed", figure)


def write_plots(comparison: Comparison, folder: Path) -> list[Path]:
    """Write every plot as PNG and SVG and return the paths.

    Raises:
        InputError: if the folder cannot be written.
    """
    stems: Counter[str] = Counter()
    paths = []
    for plot in comparison_plots(comparison):
        key = plot.stem.casefold()  # some file systems ignore case
        stems[key] += 1
        number = f"_{stems[key]}" if stems[key] > 1 else ""
        paths += save(plot.figure, folder / f"{plot.stem}{number}")
    return paths


def _lost_runs(methods: list[Sensitivity]) -> str:
    """The settings at which runs diverged or failed, with their numbers."""
    lost = Counter(
        f"{method.label} at {rate:g}"
        for method in methods
        for rate, points in zip(method.rates, method.points, strict=True)
        for point in points
        if math.isinf(point)
    )
    return "Diverged or failed: " + ", ".join(f"{text} ({n})" for text, n in lost.items()) if lost else ""
