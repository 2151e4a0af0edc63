"""The plot of the loss along each group beside its Taylor models."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gnewton.report.inspection_report import InspectionFiles
from gnewton.report.plots.style import COLORS, DASHES, figure, legend_below, title

COLUMNS = 4
MOST = 40
"""Panels of a figure; of more groups, those whose loss changes most are shown."""


def along_figure(files: InspectionFiles) -> Figure | None:
    """The loss along each group on a grid of rates, its models, and a dot where each ceases to hold.

    A hollow dot at the end of the grid: the model holds up to there at least.

    Returns:
        None where the loss along the groups was not measured, or nothing moves it.
    """
    if files.along is None or files.reach is None or files.along.empty:
        return None
    curves = {str(name): table for name, table in files.along.groupby("group", sort=False)}
    changes = {name: float(np.ptp(table["loss"])) for name, table in curves.items()}
    kept = set(sorted(changes, key=lambda name: -changes[name])[:MOST])
    names = [name for name in curves if name in kept]
    columns = min(COLUMNS, len(names))
    canvas, axes = figure(math.ceil(len(names) / columns), columns, width=2.9, height=2.3)
    panels = [axis for row in axes for axis in row]
    reach, rates = files.reach.set_index("group"), files.groups.set_index("group")["rate_cubic"]
    handles: list[Any] = []
    for name, axis in zip(names, panels, strict=False):
        handles = _panel(axis, files.orders, curves[name], reach.loc[name], float(rates[name]))
        title(axis, name)
    for axis in panels[len(names) :]:
        axis.set_visible(False)
    for axis in panels[max(0, len(names) - columns) : len(names)]:
        axis.set_xlabel("rate η")
    for row in axes:
        row[0].set_ylabel("loss")
    labels = ["loss", *(f"model of order {order}; dot: holds up to here" for order in files.orders)]
    legend_below(canvas, handles, [*labels, "suggested rate"])
    left_out = len(curves) - len(names)
    if left_out:
        canvas.supxlabel(f"{left_out} more groups, whose loss changes less, are in along.csv", fontsize=8)
    return canvas


def _panel(
    axis: Axes, orders: tuple[int, ...], curve: pd.DataFrame, reach: pd.Series, rate: float
) -> list[Any]:
    """Draw one group; returns the handles of the legend."""
    rates, losses = curve["rate"].to_numpy(dtype=float), curve["loss"].to_numpy(dtype=float)
    line = axis.plot(rates, losses, color="#222222", linewidth=2.4, alpha=0.55)
    lines = []
    for k, order in enumerate(orders):
        model = curve[f"model_{order}"].to_numpy(dtype=float)
        lines += axis.plot(rates, model, color=COLORS[k], linewidth=1.3, linestyle=DASHES[k % len(DASHES)])
        end = float(reach[f"holds_{order}"])
        if math.isfinite(end):
            at = int(np.argmin(np.abs(rates - end)))
            size = 4.5 + 1.5 * (len(orders) - k)
            filled = "none" if end == float(reach["end"]) else COLORS[k]
            axis.plot(rates[at], model[at], "o", color=COLORS[k], markersize=size, markerfacecolor=filled)
    middle = axis.axvline(0.0, color="#888888", linewidth=0.8)
    middle.set_zorder(0.5)
    shown = rate if math.isfinite(rate) else np.nan
    suggested = axis.axvline(shown, color="#888888", linewidth=1.0, linestyle=":")
    low, high = float(losses.min()), float(losses.max())
    room = 0.25 * (high - low) or 1e-12
    axis.set_ylim(low - room, high + room)  # a model may leave it
    axis.xaxis.set_major_locator(MaxNLocator(4))
    axis.yaxis.set_major_locator(MaxNLocator(4))
    axis.tick_params(labelsize=7)
    return [*line, *lines, suggested]
