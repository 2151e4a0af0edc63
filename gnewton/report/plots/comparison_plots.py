"""Every plot of a comparison, written into a folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from matplotlib.figure import Figure

from gnewton.report.comparison import Comparison
from gnewton.report.plots.study_plots import profile_figure, sensitivity_figure
from gnewton.report.plots.style import save, slug
from gnewton.report.plots.training_plots import X_AXES, progress_figure, rates_figure
from gnewton.report.studies import find_profile, find_sensitivities


def write_plots(comparison: Comparison, folder: Path) -> list[Path]:
    """Write every plot there is something to show in, as PNG and SVG; returns the paths.

    Raises:
        InputError: if the folder cannot be written.
    """
    used: Counter[str] = Counter()
    paths = []
    for name, made in _figures(comparison):
        if made is not None:
            used[name.casefold()] += 1
            number = f"_{used[name.casefold()]}" if used[name.casefold()] > 1 else ""
            paths += save(made, folder / f"{name}{number}")
    return paths


def _figures(comparison: Comparison) -> Iterator[tuple[str, Figure | None]]:
    several = len(comparison.problems) > 1
    for problem in comparison.problems:
        suffix = f"_{slug(problem)}" if several else ""
        for x, name in X_AXES.items():
            stem = f"progress_{name.rpartition(' ')[2]}{suffix}"
            yield stem, progress_figure(comparison.of_problem(problem), x, problem)
    for setup in comparison.setups:
        yield f"rates_{slug(setup.label)}", rates_figure(setup)
    yield "sensitivity", sensitivity_figure(*find_sensitivities(comparison.setups))
    profiles = [find_profile(comparison, measure) for measure in ("target_steps", "target_seconds")]
    yield "profile", profile_figure([profile for profile in profiles if profile is not None])
