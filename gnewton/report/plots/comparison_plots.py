"""All plots of a comparison, as image files and for the page."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from gnewton.report.comparison import Comparison
from gnewton.report.plots.study_plots import profile_figure, sensitivity_figure
from gnewton.report.plots.style import save, slug
from gnewton.report.plots.training_plots import X_AXES, progress_figure, rates_figure, step_figure
from gnewton.report.studies import Sensitivity, find_profile, find_sensitivities


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
