"""Plots of training: losses and accuracies of set-ups, and the learning rates of the groups."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from gnewton.report.curves import Curve, band, curves, points_for, step_curves, thin
from gnewton.report.measures import worst_of
from gnewton.report.plots.style import figure, legend_below, log_scale, looks, save, series, title
from gnewton.report.runs import median_rates, read_run
from gnewton.report.setups import Setup

X_AXES = {"epoch": "epochs", "train_seconds": "training seconds"}
"""Columns of metrics.csv against which progress is shown, and their labels."""

SPLITS = ("train", "validation", "test")


def progress_figure(setups: Sequence[Setup], x: str, title: str = "") -> Figure | None:
    """A row of axes for the loss and one for the accuracy, with a column for each split that was measured.

    Thick lines are medians over the seeds, bands their spread, thin lines single runs. A cross marks the end
    of a run that diverged or failed.

    Args:
        setups: of one problem.
        x: "epoch" or "train_seconds".
        title: of the figure.

    Returns:
        None if nothing was measured.
    """
    grid = _measured(setups, x)
    if not grid:
        return None
    canvas, axes = figure(len(grid), len(grid[0]))
    if title:
        canvas.suptitle(title, x=0.005, ha="left", fontsize=12, fontweight="bold", parse_math=False)
    for row, metrics in zip(axes, grid, strict=True):
        row[0].set_ylabel(metrics[0].rpartition("_")[2])
        for axis, metric in zip(row, metrics, strict=True):
            _draw(axis, setups, x, metric)
    styles = looks(len(setups))
    legend_below(canvas, [Line2D([], [], **style) for style in styles], [setup.solver for setup in setups])
    return canvas


def _measured(setups: Sequence[Setup], x: str) -> list[list[str]]:
    """The metrics to show as kinds × splits, without kinds and splits that have no value."""
    known = {
        f"{split}_{kind}"
        for split in SPLITS
        for kind in ("loss", "accuracy")
        if any(curves(setup, x, f"{split}_{kind}") for setup in setups)
    }
    splits = [split for split in SPLITS if f"{split}_loss" in known or f"{split}_accuracy" in known]
    kinds = [kind for kind in ("loss", "accuracy") if any(f"{split}_{kind}" in known for split in splits)]
    return [[f"{split}_{kind}" for split in splits] for kind in kinds]


def step_figure(setups: Sequence[Setup], title: str = "") -> Figure | None:
    """The training loss by step (steps.csv), each point the mean since the one before.

    Args:
        setups: of one problem.
        title: of the figure.

    Returns:
        None if no run has two points.
    """
    members = [step_curves(setup) for setup in setups]
    if not any(len(member.x) > 1 for of_setup in members for member in of_setup):
        return None
    canvas, axes = figure(1, 1, width=8.0, height=4.0)
    axis = axes[0][0]
    if title:
        canvas.suptitle(title, x=0.005, ha="left", fontsize=12, fontweight="bold", parse_math=False)
    smallest = _draw_curves(axis, members, np.inf, points_for(sum(map(len, members))))
    axis.set_xlabel("training steps")
    axis.set_ylabel("training loss")
    axis.set_xlim(left=0)
    if 0 < smallest < np.inf:
        log_scale(axis, "y")
    styles = looks(len(setups))
    legend_below(canvas, [Line2D([], [], **style) for style in styles], [setup.solver for setup in setups])
    return canvas


def _draw(axis: Axes, setups: Sequence[Setup], x: str, metric: str) -> None:
    limit = points_for(6 * sum(len(setup.runs) for setup in setups))
    members = [curves(setup, x, metric) for setup in setups]
    smallest = _draw_curves(axis, members, worst_of(metric), limit)
    axis.set_xlabel(X_AXES[x])
    split, _, kind = metric.partition("_")
    title(axis, f"{split} {kind}")
    axis.set_xlim(left=0)
    if x == "epoch":
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    if kind == "loss" and 0 < smallest < np.inf:
        log_scale(axis, "y")
    elif kind == "accuracy":
        axis.yaxis.set_major_formatter(_percent)


def _draw_curves(axis: Axes, setups: Sequence[list[Curve]], worst: float, limit: int) -> float:
    """Draw the curves of each set-up, with the band of several; returns the smallest ordinate."""
    smallest = np.inf
    for place, (members, look) in enumerate(zip(setups, looks(len(setups)), strict=True)):
        style = {**look, "gid": series(place)}
        for member in members:
            smallest = min(smallest, float(member.y.min()))
            alone = len(members) == 1
            axis.plot(
                *thin(member.x, member.y, limit),
                **style,
                **_dot(member.x),
                linewidth=1.6 if alone else 0.6,
                alpha=1.0 if alone else 0.4,
            )
            if member.broken:
                axis.plot(
                    member.x[-1], member.y[-1], "x", color=style["color"], gid=style["gid"], markersize=7
                )
        if len(members) > 1:
            _draw_band(axis, members, worst, style, limit)
    return smallest


def _draw_band(axis: Axes, members: list[Curve], worst: float, style: dict[str, Any], limit: int) -> None:
    spread = band(members, worst=worst)
    if spread is None:
        return
    finite = np.isfinite(spread.median)
    x, median = thin(spread.x[finite], spread.median[finite], limit)
    axis.plot(x, median, **style, **_dot(x), linewidth=1.8)
    x, low = thin(spread.x, spread.low, limit)
    _, high = thin(spread.x, spread.high, limit)
    filled = (np.isfinite(low) & np.isfinite(high)).tolist()
    axis.fill_between(
        x, low, high, where=filled, color=style["color"], gid=style["gid"], alpha=0.15, linewidth=0
    )


def _dot(x: Sized) -> dict[str, Any]:
    """A marker for a line of a single point, which would be invisible."""
    return {"marker": "o", "markersize": 4} if len(x) == 1 else {}


def _percent(value: float, _position: float) -> str:
    return f"{100 * value:g} %"


LEGEND_UP_TO = 24
"""With more groups than this, a colour bar for their places in the partition replaces the legend."""


def rates_figure(setup: Setup) -> Figure | None:
    """Learning rate λ₁η of every group against training steps; biases are dashed.

    Returns:
        None if the set-up has no rates.
    """
    members = [run.rates for run in setup.runs if run.rates is not None]
    rates = median_rates(members)
    if rates is None:
        return None
    canvas, axes = figure(1, 1, width=8.0, height=4.5)
    axis = axes[0][0]
    names = [str(name) for name in rates.columns]
    steps = [*rates.index, max(setup.last_step, rates.index[-1])]  # the last rates hold until the end
    colors = _colors(len(names))
    handles = [
        axis.step(
            steps,
            [*rates[name], rates[name].iloc[-1]],
            where="post",
            color=color,
            linewidth=1.3,
            linestyle="--" if name.partition(":")[0].rpartition(".")[2] in ("bias", "biases") else "-",
            gid=series(place),
        )[0]
        for place, (name, color) in enumerate(zip(rates.columns, colors, strict=True))
    ]
    axis.set_xlabel("training steps")
    axis.set_ylabel("learning rate of the group")
    over = f", median of {len(members)} runs" if len(members) > 1 else ""
    title(axis, f"{setup.label}: rates{over}")
    _scale(axis, rates.to_numpy())
    if len(names) <= LEGEND_UP_TO:
        legend_below(canvas, handles, names)
    else:
        mappable = ScalarMappable(Normalize(1, len(names)), ListedColormap(_colors(256)))
        canvas.colorbar(mappable, ax=axis, label="place of the group in the partition (dashed: biases)")
    return canvas


def _colors(count: int) -> list[tuple[float, ...]]:
    """Colours from viridis, without its ends: they hold on white and on black."""
    return [tuple(color) for color in colormaps["viridis"](np.linspace(0.38, 0.82, count))]


def _scale(axis: Axes, values: npt.NDArray[np.float64]) -> None:
    """Use a logarithmic axis if all rates are positive, and one that is linear around zero otherwise."""
    positive = np.abs(values[np.isfinite(values) & (values != 0)])
    if not len(positive):
        return
    if (values[np.isfinite(values)] > 0).all():
        log_scale(axis, "y")
    else:
        axis.set_yscale("symlog", linthresh=float(np.quantile(positive, 0.05)))
        axis.axhline(0, color="#888888", linewidth=0.8)


def write_run_plots(folder: Path, place: Path) -> dict[str, Path]:
    """Draw the learning rates of all groups against the training steps.

    Args:
        folder: the run folder.
        place: a folder for the files.

    Returns:
        the PNG files by name: ``plots/rates``, or nothing for an optimizer without rates of groups.

    Raises:
        InputError: if a file of the run cannot be read, or the plots cannot be written.
    """
    plot = rates_figure(Setup({}, [read_run(folder)], label=folder.parent.name))
    if plot is None:
        return {}
    png, _ = save(plot, place / "rates")
    return {"plots/rates": png}
